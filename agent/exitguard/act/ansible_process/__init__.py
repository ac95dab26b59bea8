"""One playbook run by ansible-runner, in a process of its own that ends with everything that it started."""
