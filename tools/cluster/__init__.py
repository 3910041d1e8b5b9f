"""A real Kubernetes on one Linux machine: programs built from source, images, kubeadm, platform."""
