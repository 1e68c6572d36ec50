//! The only crate that opens sockets to the Linux kernel: observe and apply per table, watch, network namespaces, a fake.
