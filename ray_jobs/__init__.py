"""Jobs for the cluster, one module each. Shipped to every node by the `code` role, importable there and here."""
