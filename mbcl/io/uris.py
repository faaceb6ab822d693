"""URIs hold no secrets: they stand in configurations, results, logs and messages."""

from __future__ import annotations

import re
from urllib.parse import unquote

from mbcl.errors import ConfigError

OPTIONS = {
    "file": ("use_mmap",),
    "s3": (
        "region",
        "scheme",
        "endpoint_override",
        "allow_bucket_creation",
        "allow_bucket_deletion",
        "allow_delayed_open",
        "smart_defaults",
        "tls_ca_dir_path",
        "tls_ca_file_path",
        "tls_verify_certificates",
    ),
    "gs": ("scheme", "endpoint_override", "project_id", "retry_limit_seconds"),
    "abfs": (
        "blob_storage_authority",
        "dfs_storage_authority",
        "credential_kind",
        "tenant_id",
        "client_id",
        "enable_tls",
        "background_writes",
    ),
    "hdfs": ("user", "replication", "buffer_size", "default_block_size", "kerb_ticket"),
}
"""By scheme, the options behind the question mark that pyarrow knows and that hold no secret.

A list of what secrets are called would never be whole: Azure takes a signature in a dozen parts, HDFS any option.
"""
_SAME = {"gcs": "gs", "abfss": "abfs", "viewfs": "hdfs"}
_PLAIN = re.compile(r"[\w.,:/\[\]~+ -]*", re.ASCII)
"""A value of an option: a word, number, path or host, but neither who calls (``user:password@``) nor a query."""
_WORD = re.compile("[A-Za-z_]{1,40}")


def check_uri(uri: str) -> None:
    """Refuse a URI with a password or key in it, or with an option that is not known to hold none.

    Args:
        uri: as a user gave it.

    Raises:
        ConfigError: without the secret; also if the URI does not begin with a scheme.
    """
    start = re.match(r"([a-z][a-z0-9+.-]*)://", uri, re.IGNORECASE)
    if start is None:
        raise ConfigError("found a URI that does not begin with a scheme, expected one such as s3://bucket/folder")
    scheme = start[1].lower()
    # Keys of AWS may hold a slash, so that digits before one are a secret and no port; only HDFS has ports and no keys.
    port = r"(?!\d+/)" if scheme == "hdfs" else ""
    if re.match(rf"[^/@]*(?::|%3A){port}[^@]*@", uri[start.end() :], re.IGNORECASE):
        raise _refusal(f"{start[0]}…")
    folder, _, query = uri.partition("?")
    known = OPTIONS.get(_SAME.get(scheme, scheme), ())
    for option in query.split("&"):
        name, mark, value = (unquote(part) for part in option.partition("="))
        if option and not (name in known and _PLAIN.fullmatch(value)):
            # What is no word may be a secret itself.
            shown = f"{name}=…" if mark and _WORD.fullmatch(name) else "…"
            raise _refusal(f"{folder}?{shown}", f"; options that hold none: {', '.join(known) or 'none is known'}")


def _refusal(shown: str, options: str = "") -> ConfigError:
    doubt = ", or what may be one" if options else ""
    return ConfigError(
        f"found a URI {shown} with a password or key in it{doubt}, which would stand in results and logs; the "
        f"environment or the machine's own role gives it instead{options}"
    )
