"""The machine images the emulated EC2 knows: those of kOps' own examples and a few current ones."""

import json
from pathlib import Path

UBUNTU = "099720109477"
FLATCAR = "075585003325"
AMAZON = "137112412989"

IMAGE = "ami-2404a001"
"""The one that tests launch from."""

_IMAGES = [
    # As kOps' golden clusters name it (kOps 1.36 pkg/testutils/integrationtestharness.go); on AWS the name
    # itself starts with `ubuntu/` too, so that a manifest says `ubuntu/ubuntu/images/...`.
    ("ami-12345678", UBUNTU, "x86_64", "images/hvm-ssd-gp3/ubuntu-resolute-26.04-amd64-server-20220404"),
    (IMAGE, UBUNTU, "x86_64", "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20260801"),
    ("ami-2404a002", UBUNTU, "x86_64", "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20261001"),
    ("ami-2404b001", UBUNTU, "arm64", "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-arm64-server-20260801"),
    ("ami-f1a7ca01", FLATCAR, "x86_64", "Flatcar-stable-4230.2.1-hvm"),
    ("ami-a12023a1", AMAZON, "x86_64", "al2023-ami-2023.8.20260801.0-kernel-6.12-x86_64"),
]


def write(path: Path) -> Path:
    """Writes the list in the form moto's MOTO_AMIS_PATH wants."""
    images = [
        {
            "ami_id": image,
            "name": name,
            "owner_id": owner,
            "architecture": architecture,
            "creation_date": "2026-10-01T00:00:00.000Z",
            "description": name,
            "hypervisor": "xen",
            "image_location": f"{owner}/{name}",
            "image_type": "machine",
            "public": True,
            "root_device_name": "/dev/sda1",
            "root_device_type": "ebs",
            "sriov": "simple",
            "state": "available",
            "virtualization_type": "hvm",
        }
        for image, owner, architecture, name in _IMAGES
    ]
    path.write_text(json.dumps(images, indent=1))
    return path
