"""Le benchmark, en tout petit : chaque jeu, chaque table."""
import re
import sys
from itertools import islice

import benchmark
import kit
import numpy as np


def test_sets():
    """Chaque jeu : des images de 64×64×3 octets, toujours les mêmes, toutes différentes."""
    for draw, _ in benchmark.SETS.values():
        images, again = [np.stack(list(islice(draw(), 12))) for _ in range(2)]
        assert images.shape == (12, 64, 64, 3) and images.dtype == np.uint8
        assert len(np.unique(images, axis=0)) == 12 and (images == again).all()


def test_tables(capsys, monkeypatch):
    """Le kit comparé à lui-même : les mêmes erreurs, un rapport de 1 ; quatre vitesses."""
    monkeypatch.setitem(sys.modules, "model_VAE_64", None)      # le nôtre revient ensuite
    benchmark.main(["--rapide", "--ancien", str(kit.ROOT)])
    shown = capsys.readouterr().out
    error, old_error, kl, old_kl, ratio = map(float, re.search("(?m)^visages (.*)", shown)[1].split())
    assert error == old_error > 0 and kl == old_kl > 0 and ratio == 1
    speeds = re.findall(r"(?m)batch_size = \d+ +(\S+)$", shown)
    assert len(speeds) == 4 and min(map(float, speeds)) > 0
