"""Kubernetes' Python client asks for discovery: `client.py SERVER CERTS`.

Prints a line for each group in the order the client has them, and one for each resource that its dynamic client finds. Any
error of the client ends it with 1.
"""

import sys
from pathlib import Path

from kubernetes import client, dynamic


def main(server: str, certificates: Path) -> None:
    configuration = client.Configuration()
    configuration.host = server
    configuration.ssl_ca_cert = str(certificates / "serving-ca.crt")
    configuration.cert_file = str(certificates / "admin.crt")
    configuration.key_file = str(certificates / "admin.key")
    api = client.ApiClient(configuration)
    for group in client.ApisApi(api).get_api_versions().groups:
        versions = " ".join(version.version for version in group.versions)
        print(f"group {group.name}: {versions}; preferred {group.preferred_version.version}")
    found = dynamic.DynamicClient(api).resources
    for same_kind in found:
        for resource in same_kind:
            # Lists come along as kinds of their own.
            if not isinstance(resource, dynamic.resource.ResourceList):
                print(f"resource {resource.group_version} {resource.name} {resource.kind}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: client.py SERVER CERTS")
    main(sys.argv[1], Path(sys.argv[2]))
