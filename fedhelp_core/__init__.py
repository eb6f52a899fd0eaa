"""FedHelp's library: knows no Kubernetes, no kfp, no command line. See docs/architecture.md."""
