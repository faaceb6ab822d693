"""URIs that contain a password or key are refused, and the message does not repeat the secret."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest

from mbcl.data.datasets.request import DatasetRequest
from mbcl.errors import ConfigError
from mbcl.io.store import open_store, write_text
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


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("file:///data/exp#1", "found # in a URI after file:///data/exp, where it would be cut off; .* written %23"),
        ("s3://bucket/data#v2", "found # in a URI after s3://bucket/data, .* written %23"),
        ("file:///data/100%/x", "without two digits after it; a % of a name is written %25"),
        ("file:///data/my data", "found ' ' in the URI file:///data/my data; a URI has %20 for it"),
        ("file:///data/what?", ""),
        ("file:///data/what?now", "; a [?] of a name is written %3F"),
        ("s3:/bucket/x", "found 's3:/bucket/x', a local path; the URI is 's3://bucket/x', and .* ./s3:/bucket/x"),
        ("S3:bucket", "the URI is 's3://bucket'"),
        ("file:/data/x", "the URI is 'file:///data/x'"),
        ("http:/host/x", "the URI is 'http://host/x'"),
    ],
)
def test_open_store_says_what_a_mistaken_uri_should_be(uri, meant, tmp_path, monkeypatch):
    """pyarrow cuts a URI off at ``#``, so that all subfolders of a store would be one folder."""
    monkeypatch.chdir(tmp_path)
    if not meant:
        open_store(uri)
        return
    with pytest.raises(ConfigError, match=meant) as caught:
        open_store(uri)
    with pytest.raises(ConfigError, match=re.escape(str(caught.value))):
        DatasetRequest(dir=uri)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["exp#1", "my data", "what?", "100%", "a%20b", "ü", "a+b", "a:b"])
def test_a_uri_with_escapes_is_the_folder_of_that_name(name, tmp_path):
    store = open_store(f"file://{tmp_path}/{quote(name)}")
    write_text(store.child("trials"), "x", "1")
    assert (tmp_path / name / "trials" / "x").read_text() == "1"
    assert store.list() == ["trials"]
    assert open_store(store.uri).exists("trials/x")
