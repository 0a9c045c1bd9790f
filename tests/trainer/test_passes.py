"""Which rows and documents each rank computes in each forward pass."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_trainer.data.prepared import Row, Rows, RowWriter
from finetune_trainer.model import attention, language_model
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.training.passes import Pass, Passes
from tests.trainer import gang
from tests.trainer.test_packed_rows import build, make_rows

LENGTHS = ((3, 4, 2), (9,), (5, 1, 2, 1), (6, 3), (2, 7))


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Rows whose tokens have the number of their document; all but the first are trained."""
    document = 0
    with RowWriter(tmp_path, "train") as writer:
        for lengths in LENGTHS:
            tokens = np.repeat(np.arange(document, document + len(lengths)), lengths)
            trained = np.ones(sum(lengths), dtype=np.uint8)
            trained[np.cumsum([0, *lengths])[:-1]] = 0
            writer.add(Row(tokens.astype(np.uint32), trained, np.asarray(lengths, np.uint32)))
            document += len(lengths)
    return Rows(tmp_path, "train")


def passes(rows: Rows, rank: int, world: int, forward_pass: str) -> list[Pass]:
    plan = gang.make_plan(forwardPass=forward_pass, microBatchSize=1)
    ranks = Ranks(rank, world, torch.device("cpu"), None)
    return list(Passes(rows, plan, ranks).over(list(range(len(LENGTHS)))))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_document_counts_once_and_ranks_make_the_same_number_of_passes(
    rows: Rows, world: int
) -> None:
    found = [passes(rows, rank, world, "Document") for rank in range(world)]
    assert len({len(one) for one in found}) == 1
    assert all(len(p.batch.bounds) == 2 for one in found for p in one)
    counted = [p.batch.tokens[0].tolist() for one in found for p in one if p.counts]
    expected = [length for lengths in LENGTHS for length in lengths]
    assert sorted(tokens[0] for tokens in counted) == list(range(len(expected)))
    assert all(len(tokens) == expected[tokens[0]] for tokens in counted)
    assert all(set(tokens) == {tokens[0]} for tokens in counted)
    trained = sum(len(p.batch.targets) for one in found for p in one if p.counts)
    assert trained == rows.trained_tokens.sum()


def test_packed_rows_stay_whole(rows: Rows) -> None:
    found = [passes(rows, rank, 2, "Rows") for rank in range(2)]
    assert [[len(p.batch.bounds) - 1 for p in one] for one in found] == [[3, 4, 2], [1, 2, 3]]
    assert [[p.counts for p in one] for one in found] == [[True] * 3, [True, True, False]]


def test_single_documents_have_the_loss_and_gradients_of_packed_rows() -> None:
    attention.register()
    packed = language_model.LanguageModel(build("LlamaForCausalLM", attention.NAME))
    alone = language_model.LanguageModel(build("LlamaForCausalLM", attention.DOCUMENT), "Document")
    cpu, documents = torch.device("cpu"), [d for row in make_rows() for d in row.documents()]
    whole = language_model.make_batch(make_rows(), cpu)
    batches = [language_model.make_batch([document], cpu) for document in documents]
    assert min(len(batch.targets) for batch in batches) == 0  # also documents without loss
    expected, losses = packed(whole), [alone(batch) for batch in batches]
    expected.backward()
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(sum(losses), expected)
    for (name, one), other in zip(alone.named_parameters(), packed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    with pytest.raises(ValueError, match="one document at a time"):
        alone(whole)
