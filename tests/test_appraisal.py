import shutil

from small import Keeper

from calotype import commands
from calotype.files import is_whole


def test_x(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    v = Keeper()
    commands.evaluate(tmp_path / "run", None, 8, 0, None, "cpu", v)
    print("\n".join(v.said))
    print((tmp_path / "run/model/README.md").read_text())
    print((tmp_path / "run/evaluation.json").read_text())
    assert is_whole(tmp_path / "run/model")
