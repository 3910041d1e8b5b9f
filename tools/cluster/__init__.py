"""A real Kubernetes on one Linux host: programs built from source, images, kubeadm, the platform."""
