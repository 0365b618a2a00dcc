"""Combien de temps entre un mouvement de la souris sur un slider et la nouvelle image à l'écran ?

    python tests/bench_decode.py

C'est la vraie fenêtre de decode_VAE.py, sur un écran virtuel : chaque mesure va de l'événement
au moment où le serveur d'affichage a fini de dessiner.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
import kit  # noqa: E402

MEASURE = """
import json, random, runpy, sys, time, tkinter

def measure(window, n=0):
    scale = window.sliders[0].scale

    def latency(events):
        start, before = time.perf_counter(), window.picture
        for _ in range(events):
            scale.event_generate("<B1-Motion>", x=random.randrange(20, 400), y=5)
        while window.picture is before:
            window.tk.dooneevent(2)            # 2 : sans attendre
        window.update_idletasks()
        window.winfo_pointerxy()               # répond quand le serveur d'affichage a tout dessiné
        return 1000 * (time.perf_counter() - start)

    results = {}
    for name, button, events, x in [("seule", window.all_to_zero, 1, 100),
                                    ("paire", window.next_real_image, 1, 200),
                                    ("rafale", window.all_to_zero, 100, 300)]:
        button()
        end = time.monotonic() + 1
        while time.monotonic() < end:          # les petites images
            window.update()
        scale.event_generate("<Button-1>", x=x, y=5)      # jamais deux fois au même endroit,
        window.update()                                   # ce serait un double clic
        times = sorted([latency(events) for _ in range(220)][20:])
        scale.event_generate("<ButtonRelease-1>", x=5, y=5)
        results[name] = times[len(times) // 2], times[int(len(times) * 0.95)]
    print(json.dumps(results))
    window.quit()

tkinter.Misc.mainloop = measure
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def rows(images_size=64, latent_size=4):
    """Des lignes (ce qui est mesuré, médiane en ms, 95e centile en ms)."""
    from model_VAE_64 import VAE, save_model
    screen = kit.Screen()
    try:
        with tempfile.TemporaryDirectory() as folder:
            kit.copy_kit(folder)
            script = Path(folder) / "decode_VAE.py"
            kit.edit_zone(script, images_size=images_size, latent_size=latent_size)
            save_model(VAE(latent_size, images_size), script.with_name("model_VAE_64.pt"))
            lines = subprocess.run([sys.executable, "-c", MEASURE, str(script)],
                                   env={**kit.os.environ, **screen.env}, check=True, timeout=300,
                                   stdout=subprocess.PIPE, text=True).stdout.splitlines()
    finally:
        screen.close()
    results = json.loads(next(line for line in lines if line.startswith("{")))
    return [(f"decode_VAE.py, images_size {images_size} : du slider à {what}", *results[name])
            for name, what in [("seule", "l'image"), ("paire", "l'image, original à côté"),
                               ("rafale", "l'image, 100 événements d'un coup")]]


if __name__ == "__main__":
    for size in 64, 256:
        for what, median, slow in rows(size):
            print(f"{what} : {median:.1f} ms (95 % sous {slow:.1f} ms)")
