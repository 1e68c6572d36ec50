_netd_cni() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    if [ "$COMP_CWORD" = 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "install cleanup" -- "$word")
    elif [ "${COMP_WORDS[1]}" = cleanup ]; then
        mapfile -t COMPREPLY < <(compgen -W --yes -- "$word"; compgen -f -- "$word")
    elif [ "$before" = --as ]; then
        mapfile -t COMPREPLY < <(compgen -W "netd-cni flannel bridge host-local portmap bandwidth loopback" -- "$word")
    elif [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "--as --conflist" -- "$word")
    else
        mapfile -t COMPREPLY < <(compgen -d -- "$word")
    fi
}
complete -F _netd_cni netd-cni
