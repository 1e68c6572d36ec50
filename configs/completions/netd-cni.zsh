#compdef netd-cni
_arguments '1:verb:(install)' '--as[names to install it under]:names:_values -s , name netd-cni flannel bridge host-local portmap bandwidth loopback' '2:folder:_files -/'
