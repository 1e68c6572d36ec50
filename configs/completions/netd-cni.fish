complete -c netd-cni -n __fish_use_subcommand -a install -d 'Copy the plugin into a folder'
complete -c netd-cni -n '__fish_seen_subcommand_from install' -l as -x -a 'netd-cni flannel bridge host-local portmap bandwidth loopback' -d 'Names to install it under'
complete -c netd-cni -n '__fish_seen_subcommand_from install' -l conflist -r -d 'List of plugins to install, and its path there'
