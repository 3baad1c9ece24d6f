// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * podgate's programs, on the host end of a pod's veth: from_pod at TC ingress, to_pod at TC egress.
 *
 *   parse -> flow known and of this epoch? allow
 *         -> else evaluate policy in the direction of the flow's first packet -> remember and allow, or drop
 *
 * The metered ones do the same and, with what is allowed, what the pod's limits ask for (meter.h). They are loaded when the
 * first pod needs them; a pod without limits pays nothing for them.
 */
#include "datapath.h"

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	return pg_handle(skb, PG_EGRESS, PG_UNMETERED);
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	return pg_handle(skb, PG_INGRESS, PG_UNMETERED);
}

SEC("tc")
int from_pod_metered(struct __sk_buff *skb)
{
	return pg_handle(skb, PG_EGRESS, PG_METERED);
}

SEC("tc")
int to_pod_metered(struct __sk_buff *skb)
{
	return pg_handle(skb, PG_INGRESS, PG_METERED);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
