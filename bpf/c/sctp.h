/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* SCTP's checksum is a CRC of the whole packet without addresses. A CRC is linear: a change of the ports changes it
 * by the CRC of the change followed by as many zeros as there are bytes after it. That is a multiplication by a
 * power of x, so the packet need not be read. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "packet.h"

#define PG_CRC32C 0x82f63b78

/* The CRC takes bytes in little-endian order, and is sent in it. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define PG_LITTLE_ENDIAN(word) (word)
#else
#define PG_LITTLE_ENDIAN(word) __builtin_bswap32(word)
#endif

#define PG_SCTP_CHECKSUM 8

/* x to the power of 8 * 2^n, modulo the polynomial of CRC-32C; bit 31 is x^0. */
static const volatile __u32 pg_crc_zeros[16] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a,
	0xb82be955, 0xb8fdb1e7, 0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a,
	0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
};

/* a * b. Without branches, as the verifier would follow every combination of them. */
PG_GLOBAL_FN __u32 pg_crc_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;
	int bit;

#pragma clang loop unroll(disable)
	for (bit = 31; bit >= 0; bit--) {
		product ^= b & -((a >> bit) & 1);
		b = (b >> 1) ^ (PG_CRC32C & -(b & 1));
	}
	return product;
}

/* Updates the checksum of the SCTP packet of `length` bytes at `offset` for a `change` of its ports (old ^ new). A
 * checksum of 0 is left to the device. Returns 0, or a negative number if the packet is too short or a helper
 * failed. */
PG_GLOBAL_FN int pg_sctp_ports(struct __sk_buff *skb, __u32 offset, __u32 length, __u32 change)
{
	__u32 checksum, n;

	if (bpf_skb_load_bytes(skb, offset + PG_SCTP_CHECKSUM, &checksum, sizeof(checksum)))
		return -1;
	if (!checksum)
		return 0;
	change = PG_LITTLE_ENDIAN(change);
#pragma clang loop unroll(disable)
	for (n = 0; n < 16; n++) {
		if (length >> n & 1)
			change = pg_crc_multiply(pg_crc_zeros[n & 15], change);
	}
	checksum ^= PG_LITTLE_ENDIAN(change);
	return bpf_skb_store_bytes(skb, offset + PG_SCTP_CHECKSUM, &checksum, sizeof(checksum), 0);
}
