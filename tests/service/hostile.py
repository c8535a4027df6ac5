"""Hostile names: places that try to leave an allowed folder, and addresses that try to reach another server.

Each list is built from templates, so that every trick meets every target; nothing here is allowed by any setting.
"""

from urllib.parse import quote

_TARGETS = ("etc/passwd", "root/.ssh/id_rsa", "proc/self/environ", "secret/other.jsonl")
_UPWARDS = (
    "../", "..//", "../.", "..././", "....//", "..../", ".../", "..;/", "..%00/", "..%0d/", "..%01/", "%2e%2e/",
    "%2e./", ".%2e/", "%2E%2E/", "..%2f", "..%2F", "%2e%2e%2f", "%2E%2E%2F", "..%5c", "%2e%2e%5c", "..\\", "..\\/",
    ".\\./", "%252e%252e/", "%252e%252e%252f", "..%252f", "..%255c", "%25252e%25252e%25252f", "%%32%65%%32%65/",
    "%%32%65%%32%65%%32%66", "..%c0%af", "%c0%ae%c0%ae/", "%c0%ae%c0%ae%c0%af", "%e0%80%ae%e0%80%ae/",
    "%e0%80%ae%e0%80%ae%e0%80%af", "..%e0%80%af", "%f0%80%80%ae%f0%80%80%ae/", "%f8%80%80%80%ae%f8%80%80%80%ae/",
    "..%c1%9c", "%c1%1c..", "%u002e%u002e/", "..%u2215", "..%u2216", "%uff0e%uff0e%u2215", "\uff0e\uff0e/",
    "..\uff0f", "\u2024\u2024/", "\u2025/", "\uff0e\uff0e\uff0f", "..\uff3c", "%ef%bc%8e%ef%bc%8e/", "..%ef%bc%8f",
    "%e2%80%a5/", ". ./", ".. /", " ../", "..\t/", "..\n/", "..\r/", "..\x00/", "..\x1f/", "..\x7f/", "..,/", "..:/",
)  # fmt: skip


def leaving_paths(root: str) -> list[str]:
    """Names that begin in an allowed folder and try to end outside of it."""
    found = [
        f"{root}/{between}{up * times}{target}"
        for up in _UPWARDS
        for times, between in ((1, ""), (6, ""), (3, "sub/"))
        for target in _TARGETS
    ]
    deep = "/".join([".."] * 40)
    found += [f"{root}/{deep}/etc/passwd", f"{root}/sub/../../x", f"{root}/..", f"{root}/sub/..", f"{root}/../"]
    found += [f"{root}{tail}" for tail in ("-other/x.jsonl", "2/x.jsonl", "%2f..%2fx", ".jsonl", " /x.jsonl")]
    found += [f"{root}/*/../../x.jsonl", f"{root}/**/../*", f"{root}/*/..", f"{root}/[.][.]/../x", f"{root}*/x.jsonl"]
    return found


def other_places(root: str) -> list[str]:
    """Names that are no place under an allowed folder at all."""
    absolute = [
        "/etc/passwd", "/", "//", "///etc/passwd", "/proc/self/environ", "/proc/self/root/etc/passwd", "/dev/zero",
        "/dev/fd/0", "/sys/class", "/root/.aws/credentials", "/var/run/secrets/token", "/*", "/**", "/**/*.jsonl",
        "/e?c/passwd", "/[e]tc/passwd", f"/{root}", f"//{root}/x.jsonl", f"/.{root}/../etc/passwd",
        f"{root.upper()}/x.jsonl", f"{root[:-1]}?/x.jsonl",
    ]  # fmt: skip
    relative = [
        "", ".", "..", "x.jsonl", "./x.jsonl", "../x.jsonl", "~", "~/x.jsonl", "~root/x.jsonl", "$HOME/x.jsonl",
        "${HOME}/x", "*.jsonl", " /etc/passwd", "\t/etc/passwd", "\n/etc/passwd", "\x00", f" {root}/x.jsonl",
        f"\ufeff{root}/x.jsonl", root.lstrip("/"), quote(root, safe=""), quote(root, safe="") + "%2fx.jsonl",
        f"%2f{root}", "C:\\Windows\\win.ini", "c:/Windows/win.ini", "\\\\server\\share\\x", "\\\\?\\C:\\x",
        "//server/share/x", f"{root}\\x.jsonl", f"{root}/a\\..\\..\\x",
    ]  # fmt: skip
    schemes = [
        f"{scheme}{separator}{root}/x.jsonl"
        for scheme in (
            "file", "FILE", "File", "local", "http", "https", "ftp", "sftp", "ssh", "smb", "hdfs", "webhdfs", "abfs",
            "az", "gcs", "s3a", "s3n", "S3", "GS", "memory", "zip", "tar", "simplecache", "filecache", "blockcache",
            "reference", "github", "git", "hf", "data", "jar", "dbfs", "root", "dask", "libarchive", "generic",
            "async_wrapper", "dir", "gopher",
        )
        for separator in ("://", ":", ":///", "::file://")
    ]  # fmt: skip
    chained = [
        f"zip://*.jsonl::{root}/x.zip", f"{root}/x.zip::zip", f"{root}/x.jsonl::file:///etc/passwd",
        f"simplecache::{root}/x.jsonl", f"filecache::file://{root}/x", f"{root}/a::b",
        f"tar://etc/passwd::{root}/x.tar", f"{root}/http://127.0.0.1/x", f"{root}/file:///etc/passwd", "data:,hello",
        "data:text/plain;base64,aGVsbG8=",
    ]  # fmt: skip
    return [*absolute, *relative, *schemes, *chained]


def leaving_objects(root: str) -> list[str]:
    """Object store names that try to leave the prefix `root`, such as s3://bucket/data."""
    scheme, _, rest = root.partition("://")
    bucket = rest.partition("/")[0]
    found = [f"{root}/{up * times}{target}" for up in _UPWARDS for times in (1, 4) for target in ("x.jsonl", "a/b")]
    found += [
        f"{root}-other/x", f"{root}2/x", f"{root}.x", f"{root}*/x", f"{root}?/x", f"{root[:-1]}[a]/x", f"{root}//x",
        f"{root}/a//x",
    ]  # fmt: skip
    found += [f"{root}/./x", f"{root}/a/./x", f"{root}/x#1", f"{root}%2fx", f"{root}/%2e%2e/x", f"{root}/a/%2e%2e%2fx"]
    found += [
        f"{scheme}://{bucket}", f"{scheme}://{bucket}/", f"{scheme}://{bucket}/*", f"{scheme}://{bucket}/other/x",
        f"{scheme}://*/data/x",
    ]  # fmt: skip
    found += [
        f"{scheme}://other/data/x", f"{scheme}://{bucket}.evil/data/x", f"{scheme}://evil.{bucket}/data/x",
        f"{scheme}:///data/x",
    ]  # fmt: skip
    found += [
        f"{scheme}://key:secret@{bucket}/data/x", f"{scheme}://{bucket}@evil/data/x",
        f"{scheme}://{bucket}:80/data/x", f"{scheme}://",
    ]  # fmt: skip
    found += [
        f"{scheme}:/{bucket}/data/x", f"{scheme}:{bucket}/data/x", f"{scheme.upper()}://{bucket}/data/x",
        f" {root}/x", f"{root}/x::zip://y",
    ]  # fmt: skip
    found += [
        f"{scheme}a://{bucket}/data/x", f"{scheme}://{bucket.upper()}/data/x", f"{scheme}://{bucket}\\data/x",
        f"{root}/\x00x", f"{root}\n/x",
    ]  # fmt: skip
    return found


def other_hosts(host: str, port: int) -> list[str]:
    """Addresses that are none of `http://host:port`, however much some parser thinks so."""
    listed = f"{host}:{port}"
    loopback = [
        "127.0.0.1", "127.0.0.2", "127.1", "127.0.1", "0", "0.0.0.0", "2130706433", "0x7f000001", "0x7f.0.0.1",
        "0x7f.1", "017700000001", "0177.0.0.1", "0177.0.0.01", "00000177.0.0.1", "127.000.000.001", "localhost",
        "LOCALHOST", "localhost.", "localhost.localdomain", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[::1%25lo]",
        "\u2460\u2461\u2466.0.0.1", "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "127.0.0.1.nip.io",
        "localtest.me", "ip6-localhost",
    ]  # fmt: skip
    metadata = [
        "169.254.169.254", "2852039166", "0xa9fea9fe", "0xa9.0xfe.0xa9.0xfe", "0251.0376.0251.0376",
        "0251.254.169.254", "169.254.43518", "169.16689662", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]",
        "[fd00:ec2::254]", "metadata.google.internal", "metadata", "instance-data", "169.254.169.254.nip.io",
        "100.100.100.200", "192.0.0.192", "\u2460\u2465\u2468.254.169.254", "425.510.425.510",
    ]  # fmt: skip
    private = [
        "10.0.0.1", "172.16.0.1", "192.168.0.1", "[fe80::1]", "[fc00::1]", "[ff02::1]", "255.255.255.255",
        "198.51.100.7", "evil.example",
    ]  # fmt: skip
    found = [f"http://{name}:{port}" for name in (*loopback, *metadata, *private)]
    found += [f"http://{name}/latest/meta-data/" for name in metadata]
    found += [
        f"http://evil.example@{listed}", f"http://{listed}@evil.example", f"http://{listed}@evil.example:{port}",
        f"http://user:password@{listed}", f"http://{host}%40evil.example:{port}", f"http://{host}:80@evil.example",
        f"http://:@{listed}", f"http://@{listed}", f"http://{listed}\\@evil.example",
        f"http://evil.example\\@{listed}", f"http://evil.example#@{listed}", f"http://evil.example?@{listed}",
        f"http://evil.example;@{listed}", f"http://{listed}#.evil.example", f"http://{listed}?.evil.example",
        f"http://{listed}\\.evil.example", f"http://{host}.evil.example:{port}", f"http://evil{host}:{port}",
        f"http://evil.{host}:{port}", f"http://{host}.:{port}", f"http://.{host}:{port}", f"http://{host}..:{port}",
        f"http://{host} :{port}", f"http:// {listed}", f" http://{listed}", f"http://{listed} ", f"http://{listed}\n",
        f"http://{listed}\r\nHost: evil", f"http://{host}\t:{port}", f"http://{host}\x00.evil.example:{port}",
        f"http://{host}%00.evil.example:{port}", f"http://{host}%2eevil:{port}",
        f"http://{host}%23.evil.example:{port}", f"http://{host}:{port + 1}", f"http://{host}:0{port}",
        f"http://{host}:+{port}", f"http://{host}:-1", f"http://{host}:", f"http://{host}", f"http://{host}:99999",
        f"http://{host}:{port}0", f"http://{host}: {port}", f"http://{host}:\uff18\uff10\uff10\uff10",
        f"https://{listed}", f"HTTPS://{listed}", f"ftp://{listed}", f"file://{listed}/etc/passwd",
        f"gopher://{listed}/_", f"dict://{listed}", f"//{listed}", f"{listed}", f"http:{listed}", f"http:/{listed}",
        f"http:///{listed}", f"http:\\\\{listed}", f"http:/\\{listed}", f"http;//{listed}", f"httpx://{listed}",
        f"http+unix://{listed}", f"unix://{listed}", f"javascript://{listed}", f"http://[{host}]:{port}",
        f"http://{host}\u3002evil:{port}", f"http://{host[:-1]}\u212a:{port}", f"http://{host}\u00ad:{port}",
        f"http://{host}\u200b:{port}", f"http://\u2460.{listed}", f"http://{host}/:{port}", f"http://{listed}/../..",
        f"http://{listed}/./x", f"http://{listed}/%2e%2e", f"http://{listed}/a%0d%0aX",
        f"http://{listed}//evil.example/x", f"http://{listed}/x?url=http://evil", f"http://{listed}/x#y",
        f"http://{listed},evil.example", f"http://{listed};evil.example", f"http://{listed}/a b",
        f"http://xn--{listed}", f"http://{host}\u0000:{port}", f"http://{listed}/\u2025/x", "http://", "http:",
        "http", "", "/", "x" * 3000,
    ]  # fmt: skip
    return found
