//! Linux networking: bridge, veth, addresses, nftables, in process.
