"""The files that a corpus' URI or glob names, as every file format lists them."""

from curator import storage
from curator.data import SourceFile
from curator.errors import CorpusError


def list_source_files(uri: str) -> list[SourceFile]:
    """Files in the order of their paths.

    Raises:
        CorpusError: nothing matches, or a file has a name that cannot be stored.
        StorageError: the storage cannot be listed, or `uri` is a folder.
    """
    found = storage.list_files(uri)
    if not found:
        raise CorpusError(
            f"corpus.uri: {uri!r} matches no file; check the path, or quote a glob such as 'data/*.jsonl'"
        )
    for file in found:
        try:
            file.path.encode()
        except UnicodeEncodeError as error:
            raise CorpusError(f"corpus.uri: the file name {file.path!r} is not valid UTF-8; rename the file") from error
    return [SourceFile(**file._asdict()) for file in found]
