"""Le benchmark, en tout petit : chaque table sort, avec des nombres qui en sont."""
import math
from itertools import islice

import benchmark
import numpy as np
import pytest


@pytest.mark.parametrize("name", benchmark.SETS)
def test_sets(name):
    """Un jeu : des images de 64×64×3 octets, toujours les mêmes, toutes différentes."""
    images, again = [np.stack(list(islice(benchmark.SETS[name][0](), 12))) for _ in range(2)]
    assert images.shape == (12, 64, 64, 3) and images.dtype == np.uint8
    assert len(np.unique(images, axis=0)) == 12 and (images == again).all()


def test_tables(capsys):
    """Les tables, avec de tout petits jeux : des lignes aussi longues que l'en-tête, des nombres positifs."""
    for name, (header, *rows) in benchmark.main(["--rapide"]).items():
        shown = capsys.readouterr().out
        for row in rows:
            assert len(row) == len(header) and all(0 < x < math.inf for x in row if not isinstance(x, str)), name
        assert shown == "" or str(rows[0][0]) in shown
