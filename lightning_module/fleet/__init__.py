"""Labels for any number of photos as a Parquet data set, on one machine or on a Ray cluster; begun again, it goes on.

`listing` cuts the photos into parts, `parts` labels them, `local_engine` and `ray_engine` say where, and `data_set` is
the folder that they are written to. `request` is what a data set was begun with.
"""
