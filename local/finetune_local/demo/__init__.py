"""`make demo`: a real model, fine-tuned by a FineTuneJob on a local cluster, shown as it goes."""
