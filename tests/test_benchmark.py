"""Le benchmark, en tout petit : chaque table sort, avec des nombres qui en sont."""
import math
import sys
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


def check(results):
    """Des lignes aussi longues que l'en-tête, et des nombres positifs."""
    for name, (header, *rows) in results.items():
        for row in rows:
            assert len(row) == len(header), name
            assert all(0 < x < math.inf for x in row if not isinstance(x, str)), (name, row)


@pytest.mark.skipif(sys.platform != "linux", reason="la mémoire est lue dans /proc")
def test_tables(capsys):
    """Les tables sans fenêtre, avec de tout petits jeux."""
    results = benchmark.main(["--rapide", "qualite", "vitesse", "chargement"])
    check(results)
    shown = capsys.readouterr().out
    assert all(str(row[0]) in shown for rows in results.values() for row in rows)


def test_window(screen):
    """Le temps de réponse de la fenêtre."""
    check(benchmark.main(["fenetre"]))
