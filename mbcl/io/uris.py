"""Check that URIs hold no secrets, because they appear in configurations, results, logs and messages."""

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
"""Allowlist by scheme: the query options of pyarrow that hold no secret.

A denylist of secret options would never be complete: Azure accepts a signature in a dozen parts, HDFS any option.
"""
_ALIASES = {"gcs": "gs", "abfss": "abfs", "viewfs": "hdfs"}
_SAFE_VALUE = re.compile(r"[\w.,:/\[\]~+ -]*", re.ASCII)
"""Allowed option value: a word, number, path or host, but neither credentials (``user:password@``) nor a query."""
_OPTION_NAME = re.compile("[A-Za-z_]{1,40}")


def check_uri(uri: str) -> None:
    """Refuse a URI with a password or key, or with a query option outside the allowlist.

    Raises:
        ConfigError: if it is refused, with a message without the secret; if the URI does not begin with a scheme.
    """
    scheme_match = re.match(r"([a-z][a-z0-9+.-]*)://", uri, re.IGNORECASE)
    if scheme_match is None:
        raise ConfigError("found a URI that does not begin with a scheme, expected one such as s3://bucket/folder")
    scheme = scheme_match[1].lower()
    # AWS keys may contain a slash, so `:digits/` can be a secret. Only HDFS has ports there, and it has no keys.
    port = r"(?!\d+/)" if scheme == "hdfs" else ""
    if re.match(rf"[^/@]*(?::|%3A){port}[^@]*@", uri[scheme_match.end() :], re.IGNORECASE):
        raise _refusal(f"{scheme_match[0]}…")
    _check_characters(uri, scheme_match.end())
    folder, _, query = uri.partition("?")
    allowed = OPTIONS.get(_ALIASES.get(scheme, scheme), ())
    for option in query.split("&"):
        name, mark, value = (unquote(part) for part in option.partition("="))
        if option and not (name in allowed and _SAFE_VALUE.fullmatch(value)):
            # An option name that is not a plain word may itself be a secret, so it is not shown.
            shown = f"{name}=…" if mark and _OPTION_NAME.fullmatch(name) else "…"
            known = ", ".join(allowed) or "none is known"
            raise _refusal(f"{folder}?{shown}", f"; options that hold none: {known}; a ? of a name is written %3F")


_SCHEMES = (*OPTIONS, *_ALIASES)
_MEANT_AS_URI = re.compile(rf"({'|'.join(_SCHEMES)}):/?(?!/)|[a-z][a-z0-9+.-]+:/(?!/)", re.IGNORECASE)


def check_no_uri(path: str) -> None:
    """Refuse a local path that is meant as a URI, such as ``s3:/bucket``.

    Raises:
        ConfigError: with the URI that may be meant.
    """
    if match := _MEANT_AS_URI.match(path):
        scheme, rest = match[0].rstrip("/").lower(), path[match.end() :]
        meant = f"{scheme}//{'/' * (scheme == 'file:')}{rest}"
        raise ConfigError(f"found {path!r}, a local path; the URI is {meant!r}, and a folder of that name ./{path}")


def _check_characters(uri: str, start: int) -> None:
    """Refuse characters that end a URI or its path, or that no URI has; ``start`` is the end of the scheme.

    Raises:
        ConfigError: with their spelling in a URI.
    """
    folder, _, query = uri.partition("?")
    if "#" in folder:
        shown = folder.partition("#")[0]
        raise ConfigError(f"found # in a URI after {shown}, where it would be cut off; a # of a name is written %23")
    if "#" in query:
        raise _refusal(f"{folder}?…#…")
    if re.search(r"%(?![0-9a-fA-F]{2})", folder[start:]):
        raise ConfigError(f"found % in the URI {folder} without two digits after it; a % of a name is written %25")
    if match := re.search(r"""[\x00-\x20<>"\\^`{|}]""", folder[start:]):
        raise ConfigError(f"found {match[0]!r} in the URI {folder}; a URI has %{ord(match[0]):02X} for it")


def _refusal(shown: str, options: str = "") -> ConfigError:
    doubt = ", or what may be one" if options else ""
    return ConfigError(
        f"found a URI {shown} with a password or key in it{doubt}, which would stand in results and logs; the "
        f"environment or the machine's own role gives it instead{options}"
    )
