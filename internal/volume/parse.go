package volume

// AttributeError says which attribute is wrong, and how to write it.
type AttributeError struct {
	Key string // attribute key, with the path inside it: "attach[1].xdp.mode"
	Msg string // cause and fix
}

func (e *AttributeError) Error() string { return "volumeAttributes: " + e.Key + ": " + e.Msg }
