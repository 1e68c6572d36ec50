#compdef netd-cni
_arguments '1:verb:(install)' '--as[names to install it under]:names:_values -s , name netd-cni flannel bridge host-local portmap bandwidth loopback' '--conflist[list of plugins to install, and its path there]:list:_files:path there:_files' '2:folder:_files -/'
