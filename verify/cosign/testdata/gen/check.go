// SPDX-License-Identifier: Apache-2.0
package main

import "context"

func checkOurs(context.Context, cosigns) {}
