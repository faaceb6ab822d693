"""URIs that contain a password or key are refused, and the message does not repeat the secret."""

from __future__ import annotations

import pytest

from mbcl.errors import ConfigError
from mbcl.io.store import open_store
from mbcl.io.uris import OPTIONS, check_uri


@pytest.mark.parametrize(
    "uri",
    [
        "s3://b/x?endpoint_override=https://user:hidden@host",
        "s3://b/x?endpoint_override=https%3A%2F%2Fuser%3Ahidden%40host",
        "s3://b/x?endpoint_override=https%253A%252F%252Fuser%253Ahidden%2540host",
        "s3://b/x?endpoint_override=https://host/?t=hidden",
        "s3://b/x?region=us-west-2&passwd=hidden",
        "s3://b/x?pwd=hidden",
        "s3://b/x?proxy_options=http://u:hidden@h",
        "s3://b/x?hidden",
        "s3://b/x?hidden0==",
        "s3://b/x?region=us-west-2;pwd=hidden",
        "s3://b/x?region=us-west-2#hidden=1",
        "s3://AK:123/hidden@bucket/x",
        "s3://AK:123/456@hidden@bucket/x",
        "s3://AK:p?hidden@bucket/x",
        "s3://AK:p#hidden@bucket/x",
        "s3://AK:hid den@bucket/x",
        "s3://AK%3Ahidden@bucket/x",
        "gs://anonymous:12/hidden@bucket/x",
        "hdfs://user:hidden@host:9000/x",
        "hdfs://host:9000/x?dfs.some.option=hidden",
        "abfs://c@account/x?sv=1&sig=hidden",
        "nosuch://host/x?option=hidden",
        "AK:hidden@s3://bucket/x",
    ],
)
def test_open_store_refuses_a_secret_without_repeating_it(uri):
    with pytest.raises(ConfigError) as caught:
        open_store(uri)
    assert "hidden" not in str(caught.value)
    assert "cannot be opened" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/x?",
        "s3://bucket/x?scheme=http&endpoint_override=localhost:9000",
        "s3://bucket/x?endpoint_override=https%3A%2F%2F%5B%3A%3A1%5D%3A9000&allow_bucket_creation=true",
        "s3://bucket/x?tls_ca_file_path=/etc/ssl/my-own_ca.pem",
        "gcs://anonymous@bucket/x?retry_limit_seconds=3&project_id=mine-1",
        "abfss://container@account.dfs.core.windows.net/x?enable_tls=true",
        "hdfs://user@host:9000/x/a@b?replication=2&kerb_ticket=/tmp/krb5cc_0",
        "file:///a:b@c",
    ],
)
def test_check_uri_accepts_uris_without_secrets(uri):
    check_uri(uri)


def test_check_uri_lists_known_options_for_an_unknown_one():
    with pytest.raises(ConfigError, match=r"s3://b/x\?zone=… .*, or what may be one, .*none: region, scheme"):
        check_uri("s3://b/x?zone=us-west-2")


@pytest.mark.parametrize(
    ("scheme", "option"), [(scheme, option) for scheme in ("s3", "gs") for option in OPTIONS[scheme]]
)
def test_uri_options_are_known_to_pyarrow(scheme, option):
    from pyarrow.fs import FileSystem

    region = (
        "region=us-west-2&" if scheme == "s3" else ""
    )  # without it pyarrow would request the region over the network
    user = "anonymous@" if scheme == "gs" else ""
    values = {
        "scheme": "http",
        "endpoint_override": "127.0.0.1:9",
        "smart_defaults": "standard",
        "retry_limit_seconds": "3",
    }
    FileSystem.from_uri(f"{scheme}://{user}bucket/x?{region}{option}={values.get(option, 'true')}")
