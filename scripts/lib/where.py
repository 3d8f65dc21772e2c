"""Says where a started daemon is and what it can do; scripts/run calls it with the file that the daemon announced itself in."""

import json
import os
import sys
import urllib.error
import urllib.request

WHAT = {
    "vad": "voice activity",
    "transcribe": "transcription",
    "diarize": "who spoke",
    "describe": "scenes and hazards",
    "chat": "analysis of conversations",
    "speak": "speech",
    "paint": "images",
    "read": "text in pictures",
    "detect": "objects in pictures",
}


def tasks_of(http):
    """The tasks by name, or a sentence saying why they cannot be told."""
    try:
        with urllib.request.urlopen(f"http://{http}/api/health", timeout=10) as answer:
            return json.load(answer)["tasks"]
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return f"this store has keys:  curl -H 'Authorization: Bearer KEY' http://{http}/api/health"
        return f"unknown: /api/health answered {error.code}"
    except (OSError, ValueError, KeyError) as error:
        return f"unknown: /api/health could not be read ({error})"


def report(where):
    http, mqtt = where["http"], where["mqtt"]
    rows = [
        ("Status page", f"http://{http}/ui"),
        ("API", f"http://{http}    description: /docs    health: /api/health"),
        ("Audio in", f"ws://{http}/ws/audio"),
        ("Events out", f"ws://{http}/ws/events"),
    ]
    if mqtt:
        host, port = mqtt.rsplit(":", 1)
        rows.append(("MQTT", f"{mqtt}    mosquitto_sub -h {host} -p {port} -v -t 'vigia/#'"))
    else:
        rows.append(("MQTT", "no broker in this daemon (mqtt.mode)"))
    rows.append(("Store", os.path.dirname(os.path.abspath(sys.argv[1]))))
    rows.append(("Log", "below; more of it with  scripts/run -- --set log.level=debug"))

    tasks = tasks_of(http)
    if isinstance(tasks, str):
        rows.append(("Tasks", tasks))
    else:
        able = [name for name, task in tasks.items() if task["state"] != "unavailable"]
        unable = [name for name in tasks if name not in able]
        rows.append(("Works now", ", ".join(WHAT.get(name, name) for name in able) or "no task: see /api/health"))
        if unable:
            rows.append(("Unavailable", ", ".join(WHAT.get(name, name) for name in unable)))
            rows.append(("", "These have no model here; their routes answer 503 and say what is missing."))

    print("\nVigía is ready. Ctrl-C stops it.\n")
    for title, text in rows:
        print(f"  {title:<13}{text}")
    print(flush=True)


with open(sys.argv[1], encoding="utf-8") as file:
    announced = json.load(file)
if "--http" in sys.argv[2:]:
    print(announced["http"])
else:
    report(announced)
