"""From source files to packed, masked rows on disk, and the order of these rows in training.

Imports `common` and `run_dir`. `build.py` runs the steps, each in a module of its own:

1. Files to rows: `source_file`, `read`, `json_list`.
2. Rows to examples: `shapes`, `example`.
3. Examples to documents: `tokenize_block`, `render`, `template`, `dropped_examples`; by several
   processes in `worker_pool`.
4. Documents on disk until a build is complete: `build_parts`.
5. Documents to rows: `packing`.

`prepared` is the format of the result, and `order` gives the order of its rows in training.
"""
