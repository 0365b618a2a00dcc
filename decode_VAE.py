"""Montre ce que le modèle a appris : une fenêtre avec un slider pour chaque nombre de z.

L'image est dessinée par le décodeur à partir de ces seuls nombres. Sous chaque slider, sept
petites images montrent ce que son nombre change, les autres restant où ils sont.
"""
import contextlib
import gc
import os
import sys
import threading
import time
import traceback
from itertools import count
from pathlib import Path

# ******************************* PARAMÈTRES À MODIFIER *******************************
model_file = "model_VAE_64.pt"   # modèle à ouvrir, enregistré par train_VAE.py
images_size = 64                 # *** 32-256 *** comme dans train_VAE.py
latent_size = 4                  # *** 1-32 *** comme dans train_VAE.py : autant de sliders
images_folder = "images"         # dossier du bouton « Image réelle »
camera = 0                       # *** 0-3 *** numéro de la webcam, ou un film : "film.mp4"
# *************************************************************************************

folder = Path(__file__).resolve().parent


def stop(message):
    """Affiche un message clair et termine le script (par 0 dans Spyder, où 1 serait une erreur)."""
    print(message)
    sys.exit(0 if "spyder_kernels" in sys.modules else 1)


for name, allowed, words in [
        ("images_size", range(16, 513, 16), "un multiple de 16, de 16 à 512"),
        ("latent_size", range(1, 257), "un nombre entier de 1 à 256")]:
    if type(globals()[name]) is not int or globals()[name] not in allowed:
        stop(f"Paramètre {name} = {globals()[name]!r} : il faut {words}, le même que dans "
             "train_VAE.py.")
for name in "model_file", "images_folder":
    if type(globals()[name]) is not str or not globals()[name].strip():
        stop(f"Paramètre {name} = {globals()[name]!r} : il faut un nom entre guillemets.")
if not (type(camera) is int and 0 <= camera <= 99 or type(camera) is str and camera.strip()):
    stop(f"Paramètre camera = {camera!r} : il faut le numéro d'une webcam (0, 1, 2...) ou le nom "
         "d'un film, entre guillemets.")
if not os.path.exists(folder / model_file):
    stop(f"Paramètre model_file = {model_file!r} : ce modèle n'existe pas encore. Lancez d'abord "
         "train_VAE.py, qui l'enregistre sous un nom qui finit par .pt.")

# %% Les bibliothèques
try:
    import tkinter as tk
    from tkinter import ttk
    print("Chargement de PyTorch...", flush=True)
    sys.path.insert(0, str(folder))           # pour trouver model_VAE_64.py, d'où que l'on lance
    sys.modules.pop("model_VAE_64", None)     # relu à chaque fois : il a pu être modifié
    import torch
    from PIL import Image, ImageTk
    from model_VAE_64 import (find_images, image_to_tensor, load_model, read_image,
                              tensor_to_image)
except (ImportError, OSError, RuntimeError) as error:     # absente, abîmée, ou arrêtée en chemin
    stop(f"Il manque une bibliothèque ({error}). Lancez Spyder depuis l'environnement vae "
         "(README.md, « Installer ») ; si c'est fait, menu Console > Redémarrer le noyau. Si c'est "
         "tkinter, dans un terminal : sudo apt install python3-tk (Debian, Ubuntu) ou brew "
         "install python-tk (macOS).")
except KeyboardInterrupt:
    stop("Arrêt demandé, avant le début.")

STEPS = 7           # petites images sous chaque slider, de -3 à 3
CALM = 250          # millisecondes sans changement avant de les redessiner
ASLEEP = 0.15       # « inactif » : change moins les pixels, en moyenne, que cette part du contraste
PATIENCE = 5        # secondes sans image après lesquelles la webcam est tenue pour perdue
ARROWS = {"<Left>": -0.1, "<Down>": -0.1, "<Right>": 0.1, "<Up>": 0.1}     # l'effet des flèches
PAPER, INK, FAINT, GROOVE, BLUE = "#f5f6f8", "#20242c", "#79818f", "#d8dce4", "#3568d4"


# %% La webcam
class Webcam(threading.Thread):
    """Lit la caméra, ou un film à sa vitesse, dans un fil à part : la fenêtre répond toujours.

    `image` : le carré du milieu, réduit, en miroir ; None si la fenêtre l'a déjà pris."""

    def __init__(self):
        super().__init__(daemon=True)
        os.environ.setdefault("OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS", "0")   # ouverture rapide
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")    # nos messages suffisent
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        import cv2    # ici seulement : la fenêtre s'ouvre plus vite, et même sans OpenCV
        self.cv2, self.image, self.leaving = cv2, None, threading.Event()
        self.film = type(camera) is str and os.path.isfile(folder / camera)
        self.capture = cv2.VideoCapture(str(folder / camera) if self.film else camera)

    def run(self):
        start, fps = time.monotonic(), self.capture.get(self.cv2.CAP_PROP_FPS) or 30
        for number in count(1):
            success, frame = self.capture.read()
            if self.leaving.is_set() or self.film and not success:
                break
            if success:
                self.image = self.as_seen(frame)
            if self.film:
                self.leaving.wait(start + number / fps - time.monotonic())
            elif not success:
                self.leaving.wait(0.05)
        self.capture.release()

    def as_seen(self, frame):
        height, width = frame.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        small = self.cv2.resize(frame[top:top + side, left:left + side],
                                (images_size, images_size), interpolation=self.cv2.INTER_AREA)
        return Image.fromarray(small[:, ::-1, ::-1])    # miroir ; bleu, vert, rouge -> RVB


def real_images():
    """Sans fin, les images de images_folder l'une après l'autre (à défaut, le jeu de départ) :
    (nom, image), ou (None, None) s'il n'y en a aucune de lisible."""
    while True:
        found = False
        for files in find_images(folder / images_folder):
            if found:                   # le jeu de départ ne sert que s'il n'y a rien d'autre
                break
            for file in files:
                try:
                    image = read_image(file, images_size)
                except Exception:       # illisible : à la suivante
                    continue
                found = True
                yield file.name, image
        if not found:
            yield None, None


# %% La fenêtre
class Slider(ttk.Frame):
    """Un nombre de z : son nom, sa valeur, le slider qui le règle et ses petites images.

    Le nombre peut sortir de [-3, 3] (image réelle) : le curseur reste alors en butée."""

    def __init__(self, parent, name, side, changed):
        super().__init__(parent, padding=(side // 8 + 5, 0, 8, side // 6))
        self.side = side                                    # d'une petite image, en pixels
        self.number, self.changed = tk.DoubleVar(self), changed
        self.scale = ttk.Scale(self, from_=-3, to=3, variable=self.number, command=changed,
                               length=(STEPS - 1) * side + 12)
        self.note, self.value = ttk.Label(self, foreground=FAINT), ttk.Label(self)
        self.strip = ttk.Label(self)
        put_image(self.strip, Image.new("RGB", (1, 1), PAPER), STEPS * side, side)
        ttk.Label(self, text=name).grid(row=0, column=0)
        self.note.grid(row=0, column=1)
        self.value.grid(row=0, column=2)
        self.scale.grid(row=1, columnspan=3)
        self.strip.grid(row=2, columnspan=3)
        self.columnconfigure(1, weight=1)
        self.scale.bind("<Button-1>", self.jump)
        self.scale.bind("<Double-Button-1>", lambda event: self.put(0))
        for arrow in ARROWS:
            self.scale.bind(arrow, lambda event: self.put(
                self.number.get() + ARROWS[f"<{event.keysym}>"]))

    def put(self, number):
        self.number.set(max(-3, min(3, number)))
        self.changed()
        return "break"              # Tk n'ajoute pas son propre effet

    def jump(self, event):
        """Un clic à côté du curseur l'amène sous la souris, qui peut alors le tirer."""
        self.scale.focus_set()
        if "slider" not in self.scale.identify(event.x, event.y):
            self.scale.set(self.scale.get(event.x, event.y))
            self.update_idletasks()

    def show(self, pictures):
        """Montre ce que change ce nombre : les images pour STEPS valeurs de -3 à 3."""
        strip = tensor_to_image(torch.cat(list(pictures), dim=2))
        asleep = (pictures.amax(0) - pictures.amin(0)).mean() < ASLEEP * vae.contrast
        self.note["text"] = "inactif" if asleep else ""
        if asleep:
            strip = Image.blend(strip, Image.new("RGB", strip.size, PAPER), 0.6)
        put_image(self.strip, strip, STEPS * self.side, self.side)


def put_image(label, image, width, height, bare_pixels=False):
    """Montre une image dans un ttk.Label, à cette taille ; la rend."""
    resampling = Image.Resampling.NEAREST if bare_pixels else Image.Resampling.BICUBIC
    image = image.resize((max(1, width), max(1, height)), resampling)
    label.photo = ImageTk.PhotoImage(image, master=label)     # Tk ne la garde pas lui-même
    label["image"] = label.photo
    return image


class Window(tk.Tk):
    """À gauche l'image et les boutons, à droite les sliders, en bas une ligne de messages."""

    def __init__(self):
        with contextlib.suppress(Exception):    # Windows : net sur les écrans à haute densité
            from ctypes import windll
            windll.shcore.SetProcessDpiAwareness(1)
        super().__init__()
        self.title("decode_VAE")
        self.unit = max(1, self.winfo_fpixels("1i") / 96)     # 1, ou 2 sur un écran très dense
        width = min(1340 * self.unit, self.winfo_screenwidth())
        height = min(680 * self.unit, self.winfo_screenheight() - 100 * self.unit)
        self.geometry(f"{int(width)}x{int(height)}")
        self.original, self.original_caption, self.drawn_caption = None, "", "image générée"
        self.real_images = real_images()
        self.webcam, self.draw_planned = None, False
        self.webcam_on, self.bare_pixels = tk.BooleanVar(self), tk.BooleanVar(self)
        self.strips_job = self.after(CALM, self.draw_strips)
        self.set_colors()
        self.status = ttk.Label(self, padding=(16, 0, 16, 8), foreground=FAINT)
        self.status.bind("<Configure>", lambda event: self.status.configure(
            wraplength=event.width - 32))
        self.add_sliders()
        self.status.pack(side="bottom", fill="x")
        self.add_buttons()
        self.views = ttk.Frame(self)
        self.views.pack(fill="both", expand=True, padx=12, pady=(12, 0))
        self.places = [ttk.Label(self.views, compound="bottom", padding=4) for _ in range(2)]
        self.views.bind("<Configure>", self.changed)    # première image et changements de taille
        self.protocol("WM_DELETE_WINDOW", self.quit)
        self.attributes("-topmost", True)               # devant Spyder au début
        self.after(500, self.attributes, "-topmost", False)
        self.sliders[0].scale.focus_force()
        self.say("Tirez un slider ; double clic : remettre à zéro ; flèches : petits pas.")
        self.tick()

    def set_colors(self):
        style = ttk.Style(self)
        style.theme_use("clam")
        self.configure(background=PAPER)
        style.configure(".", background=PAPER, foreground=INK, bordercolor=GROOVE)
        if latent_size > 16:
            style.configure(".", font="TkSmallCaptionFont")
        knob = round(12 * self.unit)
        style.configure("TScale", troughcolor=GROOVE, background=FAINT, gripcount=0,
                        sliderlength=knob, arrowsize=knob)
        style.map("TScale", background=[("focus", BLUE)])
        style.configure("TButton", background="white", width=0,
                        padding=(2 * self.unit, 6 * self.unit))
        style.map("TButton", background=[("selected", BLUE), ("active", GROOVE)],
                  foreground=[("selected", "white")])
        style.configure("TScrollbar", background=GROOVE, troughcolor=PAPER, bordercolor=PAPER,
                        lightcolor=PAPER, darkcolor=PAPER)
        style.map("TScrollbar", background=[("disabled", PAPER)],     # invisible si tout tient
                  arrowcolor=[("disabled", PAPER)])

    def add_sliders(self):
        """Les sliders, sur une, deux ou trois colonnes qui défilent au besoin."""
        columns = 1 + (latent_size > 5) + (latent_size > 16)
        side = int((70, 34, 21)[columns - 1] * self.unit)
        bar = ttk.Scrollbar(self)
        pane = tk.Canvas(self, background=PAPER, highlightthickness=0, yscrollcommand=bar.set)
        bar["command"] = pane.yview
        bar.pack(side="right", fill="y")
        pane.pack(side="right", fill="y", pady=6)
        frame = ttk.Frame(pane)
        self.sliders = [Slider(frame, f"z{index + 1}", side, self.moved)
                        for index in range(latent_size)]
        for index, slider in enumerate(self.sliders):
            slider.grid(row=index // columns, column=index % columns)
        pane.create_window(0, 0, window=frame, anchor="nw")
        frame.update_idletasks()
        pane.configure(width=frame.winfo_reqwidth(), scrollregion=pane.bbox("all"))
        for wheel in "<MouseWheel>", "<Button-4>", "<Button-5>":     # les deux derniers : Linux
            self.bind(wheel, lambda event: pane.yview_scroll(
                -1 if event.num == 4 or event.delta > 0 else 1, "units"))

    def add_buttons(self):
        """Les boutons, et pour chacun sa touche."""
        bar = ttk.Frame(self, padding=(12, 8))
        bar.pack(side="bottom", fill="x")
        buttons = {}
        for column, (key, text, command, switch) in enumerate([
                ("z", "Tout à zéro", self.all_to_zero, None),
                ("h", "Au hasard", self.at_random, None),
                ("i", "Image réelle", self.next_real_image, None),
                ("w", "Webcam", self.switch_webcam, self.webcam_on),
                ("p", "Pixels nus", self.changed, self.bare_pixels),
                ("e", "Enregistrer", self.save_picture, None)]):
            button = (ttk.Checkbutton(bar, style="TButton", variable=switch) if switch
                      else ttk.Button(bar))
            button.configure(text=f"{text} ({key})", command=command, takefocus=False)
            button.grid(row=0, column=column, sticky="ew", padx=2)
            bar.columnconfigure(column, weight=1)
            buttons[key] = button
        buttons["0"] = buttons["z"]     # la touche 0 aussi
        self.bind("<Key>", lambda event: event.char.lower() in buttons
                  and buttons[event.char.lower()].invoke())

    # L'image : chaque changement demande un dessin ; un seul se fait, une fois tous arrivés
    def changed(self, *_):
        if not self.draw_planned:
            self.draw_planned = True
            self.after_idle(self.draw)

    def moved(self, *_):
        """Un slider a bougé : l'image n'est plus la reconstruction de l'original."""
        self.drawn_caption = "image générée"
        self.changed()

    @torch.inference_mode()
    def draw(self):
        self.draw_planned = False
        z = [slider.number.get() for slider in self.sliders]
        picture = tensor_to_image(vae.decode(torch.tensor([z]))[0])
        shown = [(self.drawn_caption, picture)]
        if self.original:
            shown.insert(0, (self.original_caption, self.original))
        side = min(self.views.winfo_width() // len(shown) - 12, self.views.winfo_height() - 40)
        for index, (text, image) in enumerate(shown):
            place = self.places[index]
            place["text"] = text
            place.place(relx=(index + 0.5) / len(shown), rely=0.5, anchor="center")
            # Au dernier tour, l'image dessinée : celle que garde « Enregistrer »
            self.picture = put_image(place, image, side, side, self.bare_pixels.get())
        for place in self.places[len(shown):]:
            place.place_forget()
        for slider, number in zip(self.sliders, z):
            slider.value["text"] = f"{round(number, 2) + 0.0:+.2f}"    # + 0.0 : pas de « -0.00 »
        self.after_cancel(self.strips_job)
        self.strips_job = self.after(CALM, self.draw_strips)

    @torch.inference_mode()
    def draw_strips(self, index=0):
        """Les petites images d'un slider, puis, quand la fenêtre n'a rien d'autre à faire, celles
        du suivant : tirer un slider reste fluide."""
        codes = torch.tensor([[slider.number.get() for slider in self.sliders]] * STEPS)
        codes[:, index] = torch.linspace(-3, 3, STEPS)
        self.sliders[index].show(vae.decode(codes))
        if index + 1 < latent_size:
            self.strips_job = self.after(1, self.draw_strips, index + 1)

    # Les boutons
    def put_all(self, z, original=None, caption=""):
        self.original, self.original_caption = original, caption
        self.drawn_caption = "reconstruction" if original else "image générée"
        for slider, number in zip(self.sliders, z):
            slider.number.set(number)
        self.changed()

    def all_to_zero(self):
        self.stop_webcam()
        self.put_all([0] * latent_size)

    def at_random(self):
        self.stop_webcam()
        self.put_all(torch.randn(latent_size).tolist())

    @torch.inference_mode()
    def encode(self, image, caption):
        """Met les sliders aux nombres qui résument cette image."""
        mu, logvar = vae.encode(image_to_tensor(image)[None])
        self.put_all(mu[0].tolist(), image, caption)

    def next_real_image(self):
        self.stop_webcam()
        name, image = next(self.real_images)
        if image:
            self.encode(image, f"original : {name[-40:]}")
        else:
            self.say(f"Aucune image lisible dans « {folder / images_folder} ».")

    def save_picture(self):
        """Enregistre l'image dessinée, telle qu'on la voit : decode_VAE_001.png, puis 002..."""
        for number in count(1):
            path = folder / f"decode_VAE_{number:03d}.png"
            try:
                with open(path, "xb") as file:
                    self.picture.save(file, "PNG")
                return self.say(f"Image enregistrée : {path}")
            except FileExistsError:
                continue
            except OSError:
                with contextlib.suppress(OSError):      # ne laisse pas une moitié d'image
                    path.unlink()
                return self.say(f"Impossible d'écrire « {path} » : le disque est-il plein, le "
                                "dossier protégé ?")

    def switch_webcam(self):
        if not self.webcam_on.get():
            return self.stop_webcam()
        self.say("Ouverture de la caméra...")
        self.update_idletasks()
        try:
            webcam = Webcam()
        except ImportError:
            return self.stop_webcam("Il manque OpenCV (README.md, « Installer »).")
        if not webcam.capture.isOpened():
            return self.stop_webcam(
                f"La caméra ne s'ouvre pas (camera = {camera!r}) : essayez 0, 1 ou 2, sans "
                "guillemets ; fermez les autres programmes qui l'utilisent. Un film doit être à "
                "côté des scripts.")
        self.webcam, self.alive = webcam, time.monotonic()
        webcam.start()
        self.say("La webcam règle les sliders. Touche w : arrêter la webcam et garder l'image.")

    def stop_webcam(self, message=""):
        if self.webcam:
            self.webcam.leaving.set()
            self.webcam.join(timeout=1)     # c'est son fil qui libère la caméra
            self.webcam = None
        self.webcam_on.set(False)
        self.say(message)

    def tick(self):
        """Cinquante fois par seconde : l'image de la webcam. Cela réveille aussi Python, qui sinon
        ne verrait pas le bouton d'arrêt de Spyder."""
        self.after(20, self.tick)
        if self.webcam:
            image, self.webcam.image = self.webcam.image, None
            if image:
                self.alive = time.monotonic()
                self.encode(image, "webcam")
            elif not self.webcam.is_alive():
                self.stop_webcam("Fin du film." if self.webcam.film else "La caméra s'est arrêtée.")
            elif time.monotonic() - self.alive > PATIENCE:
                self.stop_webcam(f"La caméra n'envoie pas d'image depuis {PATIENCE} secondes.")

    def say(self, message):
        self.status["text"] = message

    def report_callback_exception(self, kind, error, trace):
        """Tk appelle cette méthode quand l'une des autres échoue ; la fenêtre reste ouverte."""
        if kind is KeyboardInterrupt:
            return self.quit()
        traceback.print_exception(kind, error, trace)
        self.stop_webcam(f"Erreur, détaillée dans la console : {error}")


# %% Le modèle
try:
    vae = load_model(folder / model_file)
except (FileNotFoundError, ValueError) as error:
    stop(error)
differences = [
    f"Paramètre {name} = {here} : « {model_file} » a été entraîné avec {name} = {there}. "
    f"Écrivez {name} = {there} dans la zone ***, ou relancez train_VAE.py avec {here}."
    for name, here, there in [("images_size", images_size, vae.images_size),
                              ("latent_size", latent_size, vae.latent_size)] if here != there]
if differences:
    stop("\n".join(differences))

# %% La fenêtre, jusqu'à ce qu'on la ferme
# Le modèle reste sur le processeur, et sur un seul cœur : dessiner une image y prend une
# milliseconde, moins qu'il n'en faut pour réveiller d'autres cœurs ou une carte graphique.
window, threads = None, torch.get_num_threads()
torch.set_num_threads(1)
try:
    window = Window()
    print("La fenêtre est ouverte.", flush=True)
    window.mainloop()
except KeyboardInterrupt:
    pass
except tk.TclError as error:
    stop(f"La fenêtre ne s'ouvre pas ({error}) : lancez decode_VAE.py depuis un bureau.")
finally:
    torch.set_num_threads(threads)
    if window:
        with contextlib.suppress(tk.TclError):      # le système l'a peut-être détruite avant nous
            window.stop_webcam()
            window.destroy()
    del window
    gc.collect()      # Tk ne supporte pas d'être effacé plus tard, par un autre fil
print("La fenêtre est fermée.")
