#compdef netd-cni
if [ "${words[2]}" = cleanup ]; then
  _arguments '1:verb:(install cleanup)' '--yes[remove what is listed]' '*:list:_files'
else
  _arguments '1:verb:(install cleanup)' '--as[names to install it under]:names:_values -s , name netd-cni flannel bridge host-local portmap bandwidth loopback' '--conflist[list of plugins to install, and its path there]:list:_files:path there:_files' '2:folder:_files -/'
fi
