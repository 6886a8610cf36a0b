"""JupyterHub for one machine: each user's server is a process, with a home of its own below `homes`.

As it is, whoever knows the class's password is let in under any name, and all servers run as the user who started the
hub: a room full of people who trust each other. For anything else, The Littlest JupyterHub gives each user an account;
keep the settings of the spawner. `tools/try_hub.py` runs a class on this very file.
"""

import os
import subprocess
import sys
from pathlib import Path

from jupyterhub.spawner import SimpleLocalProcessSpawner

c = get_config()  # noqa: F821
BIN = Path(sys.executable).parent
PLACE = Path(os.environ.get("CLASS_FOLDER", "class")).resolve()
COPY = ("-m", "course_utils", "lab", "faithful-circuits", "--copy")


def copy_notebooks(spawner):
    """The notebooks go into the user's home once; what a learner has written is never touched."""
    home = PLACE / "homes" / spawner.user.name
    home.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, *COPY], cwd=home, check=True)


c.JupyterHub.bind_url = os.environ.get("CLASS_ADDRESS", "http://127.0.0.1:8000")
c.JupyterHub.db_url = f"sqlite:///{PLACE}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(PLACE / "cookie_secret")
c.ConfigurableHTTPProxy.command = os.environ.get("PROXY", "configurable-http-proxy")
c.ConfigurableHTTPProxy.pid_file = str(PLACE / "proxy.pid")

c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = os.environ["CLASS_PASSWORD"]      # 8 characters or more
c.Authenticator.allow_all = True

c.JupyterHub.spawner_class = SimpleLocalProcessSpawner
c.SimpleLocalProcessSpawner.home_dir_template = str(PLACE / "homes" / "{username}")
c.Spawner.cmd = [str(BIN / "jupyterhub-singleuser")]
c.Spawner.args = ["--allow-root"] if os.geteuid() == 0 else []      # in a container
c.Spawner.default_url = "/lab/tree/faithful-circuits"
c.Spawner.pre_spawn_hook = copy_notebooks
c.Spawner.http_timeout = 300
environment = {
    "OMP_NUM_THREADS": "1",     # one thread for each user: all threads for everybody would only wait for each other
    # One file of attempts for each learner, in one folder: `faithful-circuits progress --class FOLDER` reads them.
    # Tell the class that you see them; without this line each file lies in its user's home.
    "COURSE_PROGRESS": lambda spawner: str(PLACE / "progress" / f"{spawner.user.name}.jsonl"),
}
c.Spawner.environment = environment

if token := os.environ.get("CLASS_TOKEN"):      # for a program that looks after the class, such as tools/try_hub.py
    c.JupyterHub.services = [{"name": "teacher", "api_token": token}]
    c.JupyterHub.load_roles = [{"name": "teacher", "services": ["teacher"],
                                "scopes": ["admin:users", "admin:servers", "access:servers"]}]
    environment["JUPYTERHUB_ALLOW_TOKEN_IN_URL"] = "1"      # a kernel's client has nowhere else to put it
