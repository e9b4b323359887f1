import pytest
import torch

from companion.files import load_checkpoint, replacing, save_checkpoint


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("ha")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_the_temporary_file_lies_in_the_same_folder(tmp_path):
    # os.replace is atomic only inside one file system.
    with replacing(tmp_path / "b.txt") as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
    assert (tmp_path / "b.txt").read_text() == "new"


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_a_truncated_checkpoint_is_named(tmp_path, keep):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"weights": torch.arange(1000.0)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else keep])
    with pytest.raises(ValueError, match=r"last\.pt cannot be read"):
        load_checkpoint(path)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"function": print}, path)
    with pytest.raises(ValueError, match=r"evil\.pt cannot be read"):
        load_checkpoint(path)


def test_a_checkpoint_that_is_no_dict_is_refused(tmp_path):
    path = tmp_path / "list.pt"
    torch.save([1], path)
    with pytest.raises(ValueError, match=r"list\.pt holds a list"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt")
