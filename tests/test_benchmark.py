"""Le benchmark, en tout petit : chaque table."""
import re
import sys

import benchmark
import kit


def test_tables(capsys, monkeypatch):
    """Le kit comparé à lui-même : les mêmes erreurs, un rapport de 1 ; quatre vitesses."""
    monkeypatch.setitem(sys.modules, "model_VAE_64", None)      # le nôtre revient ensuite
    benchmark.main(["--rapide", "--ancien", str(kit.ROOT)])
    shown = capsys.readouterr().out
    error, old_error, kl, old_kl, ratio = map(float, re.search("(?m)^visages (.*)", shown)[1].split())
    assert error == old_error > 0 and kl == old_kl > 0 and ratio == 1
    speeds = re.findall(r"(?m)batch_size = \d+ +(\S+)$", shown)
    assert len(speeds) == 4 and min(map(float, speeds)) > 0
