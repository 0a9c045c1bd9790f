"""`python -m finetune_local.node`: the agent of one node, started by the cluster's supervisor."""

import argparse
import asyncio
import logging
from pathlib import Path

from finetune_client.api import Api
from finetune_client.configuration import load_configuration
from finetune_local.node import images, provisioner
from finetune_local.node.addresses import Addresses
from finetune_local.node.agent import Agent
from finetune_local.node.log_server import LogServer
from finetune_local.node.registration import Registration
from finetune_local.node.service_discovery import ServiceDiscovery


def main() -> None:
    """Parse the arguments and run until the supervisor ends this process."""
    parser = argparse.ArgumentParser(
        prog="finetune_local.node", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="name of the node")
    parser.add_argument("--address", required=True, help="address on which logs are served")
    parser.add_argument("--kubeconfig", type=Path, required=True, help="kubeconfig of the node")
    parser.add_argument(
        "--provisioner-kubeconfig", type=Path, required=True, help="kubeconfig of the provisioner"
    )
    parser.add_argument(
        "--names-kubeconfig", type=Path, required=True, help="kubeconfig that may read all Services"
    )
    parser.add_argument("--serving-cert", type=Path, required=True)
    parser.add_argument("--serving-key", type=Path, required=True)
    parser.add_argument("--client-ca", type=Path, required=True)
    parser.add_argument("--devices", type=int, required=True, help="number of devices of the node")
    parser.add_argument("--state", type=Path, required=True, help="folder of the pods' files")
    parser.add_argument("--images", type=Path, required=True, help="path of images.json")
    parser.add_argument(
        "--pod-network", required=True, help="network of the pods' addresses, 127.x.y.0/24"
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_run(parser.parse_args()))


def _api(kubeconfig: Path) -> Api:
    return Api(load_configuration(kubeconfig), timeout=15.0, user_agent="finetune-local")


async def _run(arguments: argparse.Namespace) -> None:
    arguments.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    api, storage = _api(arguments.kubeconfig), _api(arguments.provisioner_kubeconfig)
    known = images.load(arguments.images)
    addresses = Addresses(arguments.pod_network, arguments.state / "next-address")
    discovery = ServiceDiscovery(_api(arguments.names_kubeconfig))
    name, state = arguments.name, arguments.state
    agent = Agent(api, name, state, known, addresses, arguments.devices, discovery)
    server = LogServer(
        lambda: list(agent.pods.values()),
        arguments.serving_cert,
        arguments.serving_key,
        arguments.client_ca,
    )
    port = await server.start(arguments.address)
    registration = Registration(api, arguments.name, arguments.address, arguments.devices, port)
    async with asyncio.TaskGroup() as group:
        group.create_task(registration.run())
        group.create_task(agent.run())
        group.create_task(discovery.run())
        group.create_task(provisioner.run(storage, arguments.state.parent / "volumes"))


if __name__ == "__main__":
    main()
