"""Forms in which a data set is published: one file each, and one line each in `OutputConfig`.

The union's discriminator is `kind`; with a single member pydantic wants the bare class.
"""

from curator.outputs.parquet import ParquetOutput

OutputConfig = ParquetOutput
