# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_kubectl_yurt_global_optspecs
    string join \n kubeconfig= context= cluster= user= n/namespace= s/server= token= as= as-group= as-uid= certificate-authority= client-certificate= client-key= tls-server-name= insecure-skip-tls-verify= request-timeout= yurt-namespace= color= h/help V/version
end

function __fish_kubectl_yurt_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_kubectl_yurt_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_kubectl_yurt_using_subcommand
    set -l cmd (__fish_kubectl_yurt_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -s V -l version -d 'Print version'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -f -a "convert" -d 'Turn nodes of this cluster into edge nodes'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -f -a "revert" -d 'Bring the cluster back to vanilla Kubernetes'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -f -a "autonomy" -d 'Let nodes keep their pods while they are away'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -f -a "status" -d 'Show the state of the nodes and components'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -f -a "tunnel" -d 'Look at the tunnel to the edge nodes'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -f -a "logs" -d 'Print the logs of a container, through the tunnel'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -f -a "exec" -d 'Execute a command in a container, through the tunnel'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -f -a "port-forward" -d 'Forward local ports to a pod, through the tunnel'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -f -a "version" -d 'Print the versions of the plugin, the cluster and the edge nodes'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -f -a "completion" -d 'Print a completion script'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l cloud-nodes -d 'Nodes that stay in the cloud; every other node becomes an edge node' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l edge-nodes -d 'Nodes that become edge nodes' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -s l -l selector -d 'Nodes with these labels become edge nodes' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l image -d 'Image of yurtd [default: this plugin\'s version]' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l dry-run -d 'Show what would be done, as this program knows it or as the server answers' -r -f -a "none\t'Do it'
client\t'Print the objects and the plan'
server\t'Send the objects to the server, which stores nothing'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l timeout -d 'How long to wait for the components, and then for each node' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l max-parallel -d 'How many nodes to convert at once, after the first' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l tunnel-address -d 'Where edge nodes reach the tunnel server [default: the control-plane nodes\' addresses, port 10262]' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l tunnel-api-address -d 'Where this plugin reaches the tunnel server [default: the control-plane nodes\' addresses, port 10263]' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l allow-connect-admission-bypass -d 'Let kubectl yurt exec and port-forward past admission policies and webhooks for CONNECT, which only the API server asks [default: as an earlier run decided, or false]' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l way-in -d 'How pods of edge nodes come to the hub [default: as an earlier run decided, or auto]' -r -f -a "auto\t'At the Service\'s address where kube-proxy carries it, or else by their environment'
service\t'At the address of Service default/kubernetes, from where a table of the node\'s leads to the hub'
environment\t'By KUBERNETES_SERVICE_HOST in their environment'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -s y -l yes -d 'Do not ask'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l skip-tunnel -d 'Do without the tunnel'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -l keep-agents -d 'Do not restart the nodes\' infrastructure agents (kube-proxy, the CNI\'s): they go past the hub until somebody does'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand convert" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l timeout -d 'How long to wait for each node' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l max-parallel -d 'How many nodes to revert at once' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -s y -l yes -d 'Do not ask'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -l keep-agents -d 'Do not restart the nodes\' infrastructure agents (kube-proxy, the CNI\'s): they miss the hub until somebody does'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand revert" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -f -a "enable" -d 'Keep the pods of these nodes when their link is lost'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -f -a "disable" -d 'Let Kubernetes evict the pods of these nodes again when they are away'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -f -a "status" -d 'Show which nodes are autonomous and whether that is in effect'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and not __fish_seen_subcommand_from enable disable status help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -s l -l selector -d 'Edge nodes with these labels' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -l all -d 'Every edge node'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -s y -l yes -d 'Do not ask'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from enable" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -s l -l selector -d 'Edge nodes with these labels' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -l all -d 'Every edge node'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -s y -l yes -d 'Do not ask'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from disable" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -s o -l output -d 'Output format' -r -f -a "json\t'JSON'
yaml\t'YAML'
wide\t'A table with more columns'
name\t'Names alone'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from status" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from help" -f -a "enable" -d 'Keep the pods of these nodes when their link is lost'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from help" -f -a "disable" -d 'Let Kubernetes evict the pods of these nodes again when they are away'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from help" -f -a "status" -d 'Show which nodes are autonomous and whether that is in effect'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand autonomy; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -s o -l output -d 'Output format' -r -f -a "json\t'JSON'
yaml\t'YAML'
wide\t'A table with more columns'
name\t'Names alone'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand status" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -f -a "status" -d 'Show the edge nodes\' sessions'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -f -a "diagnose" -d 'Walk the way to a node and name the hop where it ends'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and not __fish_seen_subcommand_from status diagnose help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -s o -l output -d 'Output format' -r -f -a "json\t'JSON'
yaml\t'YAML'
wide\t'A table with more columns'
name\t'Names alone'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -s w -l watch -d 'Go on, and print what changes' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from status" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -s o -l output -d 'Output format' -r -f -a "json\t'JSON'
yaml\t'YAML'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from diagnose" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from help" -f -a "status" -d 'Show the edge nodes\' sessions'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from help" -f -a "diagnose" -d 'Walk the way to a node and name the hop where it ends'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand tunnel; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -s c -l container -d 'Print the logs of this container' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -s l -l selector -d 'Pods with these labels' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l tail -d 'Lines of recent log to print [default: all, or 10 with a selector]' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l since -d 'Only logs newer than this long ago' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l since-time -d 'Only logs after this time (RFC 3339)' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l limit-bytes -d 'Print at most this many bytes of each log' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l max-log-requests -d 'How many logs to follow at once' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l pod-running-timeout -d 'How long to wait until a pod runs' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -s f -l follow -d 'Keep printing what is logged'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -s p -l previous -d 'Print the logs of the container\'s previous instance'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l all-containers -d 'Print the logs of every container of the pod'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l timestamps -d 'Put the time in front of each line'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l prefix -d 'Put the pod and container in front of each line'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -l ignore-errors -d 'Go on when one of several logs fails'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand logs" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -s c -l container -d 'The container' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l pod-running-timeout -d 'How long to wait until a pod runs' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -s i -l stdin -d 'Pass stdin to the container'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -s t -l tty -d 'Stdin is a terminal'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -s q -l quiet -d 'Only print the output of the command'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand exec" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l address -d 'Local addresses to listen on' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l pod-running-timeout -d 'How long to wait until a pod runs' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand port-forward" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -s o -l output -d 'Output format' -r -f -a "json\t'JSON'
yaml\t'YAML'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -l client -d 'The plugin\'s version only; nothing is asked of a server'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand version" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l kubeconfig -d 'Path of the kubeconfig file' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l context -d 'Context of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l cluster -d 'Cluster of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l user -d 'User of the kubeconfig to use' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -s n -l namespace -d 'Namespace of the workloads' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -s s -l server -d 'Address of the API server' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l token -d 'Bearer token' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l as -d 'User to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l as-group -d 'Group to impersonate; may be repeated' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l as-uid -d 'UID to impersonate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l certificate-authority -d 'File with the certificate of the API server\'s authority' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l client-certificate -d 'File with the client certificate' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l client-key -d 'File with the client certificate\'s key' -r -F
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l tls-server-name -d 'Name to verify in the API server\'s certificate' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l insecure-skip-tls-verify -d 'Do not verify the API server\'s certificate' -r -f -a "true\t''
false\t''"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l request-timeout -d 'Give up a request to the server after this long; 0 never' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l yurt-namespace -d 'Namespace of the components of kubectl-yurt' -r
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless NO_COLOR or TERM=dumb'
always\t'Always'
never\t'Never'"
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand completion" -s h -l help -d 'Print help'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and not __fish_seen_subcommand_from convert revert autonomy status tunnel logs exec port-forward version completion help" -f -a "convert" -d 'Turn nodes of this cluster into edge nodes'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and not __fish_seen_subcommand_from convert revert autonomy status tunnel logs exec port-forward version completion help" -f -a "revert" -d 'Bring the cluster back to vanilla Kubernetes'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and not __fish_seen_subcommand_from convert revert autonomy status tunnel logs exec port-forward version completion help" -f -a "autonomy" -d 'Let nodes keep their pods while they are away'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and not __fish_seen_subcommand_from convert revert autonomy status tunnel logs exec port-forward version completion help" -f -a "status" -d 'Show the state of the nodes and components'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and not __fish_seen_subcommand_from convert revert autonomy status tunnel logs exec port-forward version completion help" -f -a "tunnel" -d 'Look at the tunnel to the edge nodes'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and not __fish_seen_subcommand_from convert revert autonomy status tunnel logs exec port-forward version completion help" -f -a "logs" -d 'Print the logs of a container, through the tunnel'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and not __fish_seen_subcommand_from convert revert autonomy status tunnel logs exec port-forward version completion help" -f -a "exec" -d 'Execute a command in a container, through the tunnel'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and not __fish_seen_subcommand_from convert revert autonomy status tunnel logs exec port-forward version completion help" -f -a "port-forward" -d 'Forward local ports to a pod, through the tunnel'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and not __fish_seen_subcommand_from convert revert autonomy status tunnel logs exec port-forward version completion help" -f -a "version" -d 'Print the versions of the plugin, the cluster and the edge nodes'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and not __fish_seen_subcommand_from convert revert autonomy status tunnel logs exec port-forward version completion help" -f -a "completion" -d 'Print a completion script'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and not __fish_seen_subcommand_from convert revert autonomy status tunnel logs exec port-forward version completion help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and __fish_seen_subcommand_from autonomy" -f -a "enable" -d 'Keep the pods of these nodes when their link is lost'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and __fish_seen_subcommand_from autonomy" -f -a "disable" -d 'Let Kubernetes evict the pods of these nodes again when they are away'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and __fish_seen_subcommand_from autonomy" -f -a "status" -d 'Show which nodes are autonomous and whether that is in effect'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and __fish_seen_subcommand_from tunnel" -f -a "status" -d 'Show the edge nodes\' sessions'
complete -c kubectl-yurt -n "__fish_kubectl_yurt_using_subcommand help; and __fish_seen_subcommand_from tunnel" -f -a "diagnose" -d 'Walk the way to a node and name the hop where it ends'
