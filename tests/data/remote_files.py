"""Remote files that fail as planned, and small stores of their copies."""

from clipkit.data.shard_store import ShardStore

SIZE = 1000


def remote_urls(folder):
    """URLs of five files of 1,000 bytes."""
    (folder / "remote").mkdir()
    for i in range(5):
        (folder / "remote" / f"{i}.tar").write_bytes(bytes([i]) * SIZE)
    return [f"file://{folder}/remote/{i}.tar" for i in range(5)]


class Flaky:
    """A file system whose next calls of `method` meet the errors of `plan`, one each."""

    def __init__(self, files, method, plan):
        self.files, self.method, self.plan, self.calls = files, method, list(plan), 0

    def __getattr__(self, name):
        def call(*args, **kwargs):
            if name == self.method:
                self.calls += 1
                if self.plan:
                    error = self.plan.pop(0)
                    if isinstance(error, Exception):
                        raise error
                    return error(*args, **kwargs)
            return getattr(self.files, name)(*args, **kwargs)

        return call

    def of(self, url):
        """Stands for shard_store.filesystem."""
        return self, url.partition("://")[2].split("@")[-1]


def store_in(tmp_path, room=10 * SIZE, **options):
    waits = []
    store = ShardStore(tmp_path / "cache", room, **{"sleep": waits.append, **options})
    store.waits = waits
    return store


def copies(store):
    return sorted(p.read_bytes()[0] for p in store.folder.glob("*.tar"))
