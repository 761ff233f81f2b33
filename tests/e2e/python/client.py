"""Kubernetes' own Python client against a cloud: create, watch, exec, delete."""

import os
import pathlib
import subprocess
import sys
import tempfile

from kubernetes import client, config, watch
from kubernetes.stream import stream

PROGRAM = os.environ["CUMULET_BIN"]
EXAMPLES = pathlib.Path(os.environ["CUMULET_EXAMPLES"])


def cumulet(state, *args):
    subprocess.run([PROGRAM, "--state-dir", state, *args], check=True, stdout=subprocess.DEVNULL)


def exercise():
    core, apps = client.CoreV1Api(), client.AppsV1Api()
    assert [n.metadata.name for n in core.list_node().items], "no node"

    labels = {"app": "py"}
    container = client.V1Container(name="hello", image="hello:1", ports=[client.V1ContainerPort(container_port=8080)])
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=[container])
    )
    spec = client.V1DeploymentSpec(replicas=2, selector=client.V1LabelSelector(match_labels=labels), template=template)
    apps.create_namespaced_deployment("default", client.V1Deployment(metadata=client.V1ObjectMeta(name="py"), spec=spec))

    ready = set()
    for event in watch.Watch().stream(
        core.list_namespaced_pod, "default", label_selector="app=py", timeout_seconds=60
    ):
        pod = event["object"]
        conditions = {c.type: c.status for c in pod.status.conditions or []}
        if conditions.get("Ready") == "True":
            ready.add(pod.metadata.name)
        if len(ready) == 2:
            break
    assert len(ready) == 2, f"only {ready} became ready"

    name = sorted(ready)[0]
    said = stream(
        core.connect_get_namespaced_pod_exec, name, "default", command=["hostname"],
        stdout=True, stderr=True, stdin=False, tty=False,
    )
    assert said.strip() == name, said
    assert "listening" in core.read_namespaced_pod_log(name, "default")

    apps.patch_namespaced_deployment_scale("py", "default", {"spec": {"replicas": 0}})
    try:
        core.read_namespaced_config_map("nosuch", "default")
        raise AssertionError("a missing object was found")
    except client.ApiException as error:
        assert error.status == 404 and "NotFound" in error.body, error
    apps.delete_namespaced_deployment("py", "default")


def main():
    with tempfile.TemporaryDirectory(prefix="cumulet-test-") as state:
        os.chmod(state, 0o700)
        try:
            cumulet(state, "up", "--detach", "--api-listen", "127.0.0.1:0")
            cumulet(state, "image", "build", str(EXAMPLES / "hello"))
            config.load_kube_config(os.path.join(state, "kubeconfig"))
            exercise()
        finally:
            cumulet(state, "down", "--purge", "--timeout", "1")
    print("python client: create, watch, exec, logs, scale, errors, delete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
