// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * podgate's two programs, on the host end of a pod's veth: from_pod at TC ingress, to_pod at TC egress.
 *
 *   parse -> flow known and of this epoch? pass
 *         -> else judge by the direction of the flow's first packet -> remember and pass, or drop
 */
#include "gate.h"

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	return pg_gate(skb, PG_EGRESS);
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	return pg_gate(skb, PG_INGRESS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
