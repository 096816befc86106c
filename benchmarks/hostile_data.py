"""The doors of data: captions, annotations, Parquet data sets, caption servers, addresses, names on the terminal."""

from hostile_mutators import Door


DOORS: tuple[Door, ...] = ()
