//! Cluster DNS server: authoritative for the cluster zone, forwarding for the rest.
