//! Keeps IPVS virtual servers equal to Services and EndpointSlices.
