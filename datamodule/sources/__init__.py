"""Where photos and their labels come from: folders of classes or of sets, tables, addresses, Kaggle.

`roots` looks at folders, `photo_table` at tables, which `table_file` reads; `addresses` and `kaggle_photos` fetch what
is elsewhere. `photo_arguments` takes all of these, and lists, as the arguments of a command.
"""
