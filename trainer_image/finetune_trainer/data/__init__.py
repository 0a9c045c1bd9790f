"""From source files to packed, masked rows on disk, and the order of these rows in training.

Imports `common` and `run_dir`. `build.py` runs the steps, each in a module of its own:

1. Files to rows: `read`, `read_text`, `read_columnar`, `json_list`, `block`, `source_file`.
2. Rows to examples: `shapes`, `messages`, `fields`, `example`; errors in `row_errors`.
3. Examples to documents: `tokenize_block`, `render`, `template`, `stop_token`, `encode`,
   `overlong`, `example_counts`; by several processes in `worker_pool`.
4. Documents on disk until a build is complete: `build_parts`; `build_progress` logs how far it is.
5. Documents to rows: `split_writer`, `packing`, `rows`.

`prepared` reads the result and `order` gives the order of its rows in training.
"""
