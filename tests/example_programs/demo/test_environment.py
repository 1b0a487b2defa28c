import psycopg
import pytest

from coupon_clock.local_servers.errors import FolderUnusable
from environment import FolderBusy, alone_in, empty_database


def test_a_second_demo_in_one_folder_is_refused(tmp_path):
    with alone_in(tmp_path), pytest.raises(FolderBusy, match="Another demo is running"), alone_in(tmp_path):
        pass


def test_a_folder_is_free_again_afterwards(tmp_path):
    for _ in range(2):
        with alone_in(tmp_path / "new"):
            assert (tmp_path / "new").is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(FolderUnusable, match="cannot be used"), alone_in(tmp_path / "file"):
        pass


def test_each_run_has_an_empty_database_also_while_the_one_before_is_in_use(postgres):
    with psycopg.connect(empty_database(postgres.url), autocommit=True) as first:
        first.execute("CREATE TABLE remains ()")
        with psycopg.connect(empty_database(postgres.url)) as second:
            assert second.execute("SELECT to_regclass('remains')").fetchone() == (None,)
        with pytest.raises(psycopg.OperationalError):
            first.execute("SELECT 1")
