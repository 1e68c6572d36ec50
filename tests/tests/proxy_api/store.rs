//! The API server without its store: Services go on, and the status says so.

use anyhow::Result;
use lab::kubernetes::{ApiServer, Faults, Release};

use crate::proxy::Nodes;
use crate::{answered_by, in_reach, lost, service, slice, start};

pub(crate) fn an_api_server_without_its_etcd_is_named_and_services_go_on() -> Result<()> {
    let (mut server, nodes) = (ApiServer::shared(Release::V1_20)?, Nodes::start()?);
    server.put(&service("web", "192.168.0.10"))?;
    server.put(&slice(Release::V1_20, &["172.7.21.2"]))?;
    let faults = Faults::start(&server, nodes.node()?)?;
    let _proxy = start(&nodes, &faults.kubeconfig())?;
    answered_by(&nodes, &["172.7.21.2"])?;
    server.lose_etcd()?;
    lost(&nodes, "does not reach its etcd")?;
    answered_by(&nodes, &["172.7.21.2"])?;
    server.bring_etcd_back()?;
    in_reach(&nodes)?;
    server.put(&slice(Release::V1_20, &["172.7.22.3"]))?;
    answered_by(&nodes, &["172.7.22.3"])
}
