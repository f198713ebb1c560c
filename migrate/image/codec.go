package image

import (
	"fmt"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

// Bounds on what is decoded. A tree that exceeds them cannot be moved.
const (
	maxElements = 1 << 22 // of any list
	maxNesting  = 16
)

var encMode = sync.OnceValue(func() cbor.EncMode {
	options := cbor.CoreDetEncOptions()
	options.String = cbor.StringToByteString // names of files need not be UTF-8
	mode, err := options.EncMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return mode
})

var decMode = sync.OnceValue(func() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:          cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:    maxNesting,
		MaxArrayElements:   maxElements,
		MaxMapPairs:        64,
		IndefLength:        cbor.IndefLengthForbidden,
		TagsMd:             cbor.TagsForbidden,
		ExtraReturnErrors:  cbor.ExtraDecErrorUnknownField,
		ByteStringToString: cbor.ByteStringToStringAllowed,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return mode
})

// Encode writes the image down.
func (m *Image) Encode() ([]byte, error) {
	m.Version = Version
	return encode(m.written())
}

// Decode reads an image that may come from anybody and checks it.
func Decode(data []byte) (*Image, error) {
	w := writtenImage{Image: &Image{}}
	if err := decode(data, &w); err != nil {
		return nil, fmt.Errorf("decoding an image: %w", err)
	}
	m, err := w.image()
	if err == nil {
		err = m.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("decoding an image: %w", err)
	}
	return m, nil
}

// Encode writes the layout down.
func (l *Layout) Encode() ([]byte, error) { return encode(l) }

// DecodeLayout reads a layout that may come from anybody and checks it.
func DecodeLayout(data []byte) (*Layout, error) {
	var l Layout
	if err := decode(data, &l); err != nil {
		return nil, fmt.Errorf("decoding a layout: %w", err)
	}
	if err := l.Validate(); err != nil {
		return nil, fmt.Errorf("decoding a layout: %w", err)
	}
	return &l, nil
}

func encode(v any) ([]byte, error) { return encMode().Marshal(v) }

func decode(data []byte, v any) error { return decMode().Unmarshal(data, v) }
