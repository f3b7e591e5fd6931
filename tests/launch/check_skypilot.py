"""SkyPilot's own parser reads a task that `launch sky` wrote; in an environment with skypilot.

python tests/launch/check_skypilot.py NAME.launch/task.yaml
"""

import sys

import sky
import yaml

if __name__ == "__main__":
    with open(sys.argv[1]) as stream:
        document = yaml.safe_load(stream)
    document |= {"secrets": dict.fromkeys(document.get("secrets", {}), "value")}
    task = sky.Task.from_yaml_config({key: value for key, value in document.items() if value})
    for resources in task.resources:
        print(sky.__version__, resources)
