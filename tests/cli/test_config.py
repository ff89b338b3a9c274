from __future__ import annotations

import pytest

from luthier import home as home_dir
from luthier.cli import config
from luthier.cli.exits import Exit, Failure


@pytest.fixture(autouse=True)
def environment(monkeypatch, home):
    for name in ("LUTHIER_BASE_URL", "LUTHIER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LUTHIER_HOME", str(home))
    return monkeypatch


def store(home, url="http://stored:4400", key="lk-stored"):
    home_dir.write_credentials(home, home_dir.Credentials(url, key))


def test_resolve_when_nothing_is_configured_then_names_serve_and_login():
    with pytest.raises(Failure) as caught:
        config.resolve(None)
    assert caught.value.exit_code is Exit.CONNECTION
    assert "luthier serve" in caught.value.hint
    assert "luthier login" in caught.value.hint


def test_resolve_when_credentials_are_stored_then_they_are_used(home):
    store(home)
    assert config.resolve(None) == config.Config("http://stored:4400", "lk-stored")


def test_resolve_when_option_and_environment_then_the_option_wins(environment):
    environment.setenv("LUTHIER_BASE_URL", "http://environment:1")
    environment.setenv("LUTHIER_API_KEY", "lk-environment")
    assert config.resolve("http://option:2/v1/") == config.Config("http://option:2", "lk-environment")


def test_resolve_when_another_server_is_named_then_the_stored_key_is_not_sent_there(home):
    store(home)
    with pytest.raises(Failure, match="no API key for http://elsewhere") as caught:
        config.resolve("http://elsewhere")
    assert "lk-stored" not in str(caught.value.to_json())


def test_resolve_when_the_stored_server_is_named_in_another_spelling_then_its_key_is_used(home):
    store(home)
    assert config.resolve("http://stored:4400/v1").api_key == "lk-stored"


def test_resolve_when_key_alone_is_in_environment_then_the_stored_server_is_used(environment, home):
    store(home)
    environment.setenv("LUTHIER_API_KEY", "lk-other")
    assert config.resolve(None) == config.Config("http://stored:4400", "lk-other")


def test_resolve_when_key_without_server_then_says_so(environment):
    environment.setenv("LUTHIER_API_KEY", "lk-x")
    with pytest.raises(Failure) as caught:
        config.resolve(None)
    assert caught.value.code == "no_base_url"


def test_resolve_when_credentials_are_broken_then_names_the_file(home):
    (home / "credentials.json").write_text("{")
    with pytest.raises(Failure, match=r"credentials\.json"):
        config.resolve(None)


@pytest.mark.parametrize("url", ["localhost:4400", "ftp://x", "http://", "4400"])
def test_resolve_when_url_is_none_then_usage(url):
    with pytest.raises(Failure) as caught:
        config.resolve(url)
    assert caught.value.exit_code is Exit.USAGE


def test_store_when_home_is_missing_then_it_is_made_private(environment, tmp_path):
    environment.setenv("LUTHIER_HOME", str(tmp_path / "new" / "home"))
    path = config.store(config.Config("http://a", "lk-secret"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert config.resolve(None) == config.Config("http://a", "lk-secret")
    stored = home_dir.find_credentials(path.parent)
    assert stored is not None
    assert stored.is_login  # a server that is started on this home leaves it alone


def test_config_when_shown_then_without_its_key():
    assert "lk-secret" not in repr(config.Config("http://a", "lk-secret"))
