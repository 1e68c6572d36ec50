//! Parts of units that several components have.
//!
//! Invariant: a unit that waits for something outside its host holds up no target, and none gives up starting.

/// What stands over every file.
pub(super) const MADE: &str =
    "# Rendered by netdadm from the topology of the cluster; what is changed here is replaced.\n";

/// Restarts that slow down: from 2 to 10 seconds where systemd has the words (254 and later), else each 2 seconds.
pub(super) const RESTART: &str = "Restart=always\nRestartSec=2s\nRestartSteps=5\nRestartMaxDelaySec=10s\n";

/// Where it is switched on.
pub(super) const INSTALL: &str = "\n[Install]\nWantedBy=multi-user.target\n";

/// What a server of the control plane may not do: anything but talk and write where it is said. It runs as root without any
/// capability, so that it reads keys of mode 0600 and nobody needs a user of its own.
pub(super) const CONFINED: &str = "\
CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
";

/// The first section: what the unit is and what it starts behind. With `late` no target is ordered behind it.
pub(super) fn head(description: &str, after: &str, late: bool) -> String {
    let late = if late {
        "# It waits for other hosts; without the default dependencies no target waits with it.\n\
         DefaultDependencies=no\nRequires=sysinit.target\nAfter=sysinit.target basic.target\n\
         Conflicts=shutdown.target\nBefore=shutdown.target\n"
    } else {
        ""
    };
    format!(
        "{MADE}[Unit]\nDescription={description}\nWants=network-online.target\n\
         After=network-online.target time-sync.target{after}\n{late}\
         # A start is tried as long as it takes.\nStartLimitIntervalSec=0\n\n[Service]\n"
    )
}
